"""The model card: ``README.md`` of an exported model, with the front matter that model hubs read.

Source: Mitchell et al., Model Cards for Model Reporting, FAT* 2019. Every figure comes from the run that trained the
model; what nobody stated is said to be missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.subgroups import EVERYBODY
from equipoise.platform.report.datasets import datasets_of
from equipoise.platform.report.formatting import count, estimate, label, number, plural
from equipoise.platform.report.metric_rows import TOGETHER, external, internal, pick
from equipoise.platform.report.sections.limits import limits

if TYPE_CHECKING:
    from equipoise.datasets.tables.tasks import Task
    from equipoise.platform.prediction.exported_model import ModelConfig
    from equipoise.platform.prediction.operating_points import OperatingPoints, TaskPoints
    from equipoise.platform.report.run_files import RunFiles
    from equipoise.platform.study.schema import Study

_RESEARCH = "Research use only. This is not a medical device; no decision about a patient may rest on its output alone."


def model_card(config: ModelConfig, points: OperatingPoints, run: RunFiles, study: Study) -> str:
    """The card as Markdown.

    Parameters
    ----------
    config, points
        What the export holds.
    run
        The run that trained the model.
    study
        Its study.
    """
    mark = " (SYNTHETIC)" if config.synthetic else ""
    parts = [
        f"# {config.name}{mark}",
        *(
            [
                "**SYNTHETIC: trained on generated slides and tables of no patient. It shows that the software works.**"
            ]
            if config.synthetic
            else []
        ),
        _RESEARCH,
        _summary(config),
        "## Intended use\n\n" + (study.report.intended_use or "Not stated by whoever exported the model."),
        "## How to use it\n\n" + _usage(config),
        "## What it predicts\n\n" + _tasks(config, points),
        "## What it reads\n\n" + _inputs(config),
        "## Training data\n\n" + _data(config, run),
        "## Performance\n\n" + _performance(config, run),
        "## Subgroups and sites\n\n" + _subgroups(config, run),
        "## Limits\n\n" + "\n".join(f"- {sentence}" for sentence in limits(run, name_sites=False)),
        "## Versions\n\n" + _versions(config),
    ]
    return f"---\n{_front_matter(config, run)}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(config: ModelConfig, run: RunFiles) -> str:
    results = [
        {
            "task": {"type": task.type, "name": task.name},
            "dataset": {
                "type": "private",
                "name": str(row["cohort"]) if row["cohort"] != "all" else "cross-validation",
            },
            "metrics": [{"type": row["metric"], "value": round(float(row["value"]), 4)}],
        }
        for task in config.tasks
        for row in _headline(run, task.name, task.type)
        if math.isfinite(row["value"])
    ]
    tags = ["computational-pathology", "whole-slide-image", *(task.type for task in config.tasks)]
    content: dict[str, Any] = {
        "license": config.license or "other",
        "library_name": "equipoise",
        "tags": list(dict.fromkeys([*tags, *(["synthetic"] if config.synthetic else [])])),
    }
    if results:
        content["model-index"] = [{"name": config.name, "results": results}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _headline(run: RunFiles, task: str, kind: str) -> list[dict[str, Any]]:
    row = internal(run, task, PRIMARY[kind])
    return [*([] if row is None else [row]), *external(run, task, PRIMARY[kind])]


def _summary(config: ModelConfig) -> str:
    models = (
        f"the mean of {plural(len(config.members), 'model')}, one of each fold of a cross-validation"
        if config.combined == "ensemble"
        else f"one model of all development patients. {config.combined_note}"
    )
    inner = (
        f" Each of them averages {config.models_per_member} models." if config.models_per_member > 1 else ""
    )
    licence = config.license or "not stated"
    return f"Model `{config.kind}`: {models}.{inner} Licence of the weights: {licence}."


def _usage(config: ModelConfig) -> str:
    local = "".join(f" --file {file.key}={file.name}" for file in config.local_files)
    lines = ["equipoise import DIR            # checks every file, says what the model is"]
    if config.features is not None and not config.features.imported:
        lines.append(f"equipoise predict --model DIR --slides SLIDES -o OUT{local}")
    if config.features is not None:
        lines.append(f"equipoise predict --model DIR --features STORE -o OUT{local}")
    elif config.tables.modalities:
        tables = " ".join(f"--tables {name}=FILE" for name in config.tables.modalities)
        lines.append(f"equipoise predict --model DIR {tables} -o OUT{local}")
    return "```sh\n" + "\n".join(lines) + "\n```"


def _tasks(config: ModelConfig, points: OperatingPoints) -> str:
    rows = []
    for task in config.tasks:
        point = points.tasks[task.name]
        known = [value for value in point.cutoffs.values() if value is not None]
        threshold = number(sum(known) / len(known)) if known else "none"
        what = _output(task, point)
        rule = point.rule if known else point.note
        rows.append(
            [
                task.name,
                task.type,
                what,
                threshold,
                "; ".join(filter(None, [rule, point.note if known else ""])),
            ]
        )
    return _table(["task", "type", "output", "threshold", "how it was chosen"], rows)


def _output(task: Task, points: TaskPoints) -> str:
    """What a prediction of a task is."""
    if task.type == "binary":
        return f"probability of {task.class_names[0]}, against {points.negative}"
    if task.type == "multiclass":
        return f"probability of {', '.join(task.class_names)}"
    if task.type == "regression":
        return f"value of `{task.column}` in its unit"
    days = f"; survival at {', '.join(map(str, points.horizons))} days" if points.horizons else ""
    return f"risk in standard deviations, higher is worse{days}"


def _inputs(config: ModelConfig) -> str:
    lines = []
    if config.features is not None:
        tiles = config.features.tiles
        lines.append(
            f"- Slides: tiles of {tiles.tile_px} px at {tiles.mpp:g} µm/px, encoder `{tiles.encoder}` "
            f"({tiles.dim} numbers per tile; identity {tiles.encoder_hash[:16]}). Features of another encoder, other "
            "weights or another resolution are refused."
        )
        if config.features.reads != tiles:
            lines.append(
                f"- Vectors of slides by `{config.features.reads.encoder}` ({config.features.reads.dim} numbers)."
            )
    for modality in config.tables.modalities:
        kind = (
            f", {config.tables.expression_kind}"
            if modality == "rna" and config.tables.expression_kind
            else ""
        )
        lines.append(f"- Table `{modality}`{kind}; a patient without it is predicted from the rest.")
    lines += [f"- `{file.key}`: {file.name}, which is not part of the export." for file in config.local_files]
    return "\n".join(lines)


def _data(config: ModelConfig, run: RunFiles) -> str:
    if run.patients is None:
        return "Not known."
    rows = []
    for (cohort, role), part in run.patients.groupby(["cohort", "role"], sort=False):
        labels = []
        for task in config.tasks:
            if task.type == "survival":
                event = part[f"{task.name}.event"]
                labels.append(
                    f"{task.name}: {count(event.notna().sum())} ({count((event == 1).sum())} events)"
                )
                continue
            known = part[task.name].dropna()
            positive = f" ({count((known == 1).sum())} positive)" if task.type == "binary" else ""
            labels.append(f"{task.name}: {count(len(known))}{positive}")
        use = "trained and cross-validated" if role == "develop" else "tested only"
        rows.append([str(cohort), use, count(len(part)), count(part["site"].nunique()), "; ".join(labels)])
    return _table(["cohort", "use", "patients", "sites", "patients with a label"], rows)


def _performance(config: ModelConfig, run: RunFiles) -> str:
    rows = [
        [
            task.name,
            "cross-validation" if row["role"] == "test" else f"external: {row['cohort']}",
            label(row["metric"]),
            estimate(row),
            count(row["n"]),
        ]
        for task in config.tasks
        for row in _headline(run, task.name, task.type)
    ]
    if not rows:
        return "The run computed no metric."
    level = f"{run.confidence:.0%}".replace("%", " %")
    note = (
        f"In brackets: {level} interval. Cross-validation: patients of the test folds, each by a model that has not "
        "seen them"
    )
    if config.combined == "refit":
        note += "; the refit itself was tested on nobody, these are the models of the folds"
    return _table(["task", "patients", "metric", "value", "n"], rows) + f"\n\n{note}."


def _subgroups(config: ModelConfig, run: RunFiles) -> str:
    """Sites of the test folds and external cohorts, numbered, and the subgroups that the study names."""
    sites = _site_rows(config, run)
    parts = [
        _table(["task", "patients", "site", "metric", "value", "n"], sites)
        + "\n\nSites are numbered: their names are not part of the export."
        if sites
        else "No site has enough patients for a value of its own."
    ]
    rows = []
    for task in config.tasks:
        for data in datasets_of(run.subgroups, task.name):
            rows += [
                [
                    task.name,
                    data.name,
                    row["subgroup"],
                    "all patients" if row["group"] == EVERYBODY else row["group"],
                    label(row["metric"]),
                    estimate(row) if math.isfinite(row["value"]) else "–",
                    count(row["n"]),
                ]
                for row in data.rows.to_dict("records")
            ]
    if rows:
        parts.append(_table(["task", "patients", "subgroup", "group", "metric", "value", "n"], rows))
        parts.append("A dash stands for a group with too few patients for a value.")
    else:
        parts.append(
            "The study names no subgroups of patients, such as sex or stage (`evaluation.subgroups`)."
        )
    return "\n\n".join(parts)


def _site_rows(config: ModelConfig, run: RunFiles) -> list[list[str]]:
    """Values of sites with enough patients; a site has the same number in every row."""
    numbers: dict[tuple[str, str], int] = {}
    sites = dict.fromkeys(str(row["site"]) for row in run.metric_rows if row["site"] != "all")
    rows = []
    for task in config.tasks:
        for role in ("test", "external"):
            found = [
                row
                for site in sites
                for row in pick(
                    run.metric_rows, task=task.name, role=role, site=site, metric=PRIMARY[task.type]
                )
                if math.isfinite(row["value"]) and row["cohort"] not in TOGETHER
            ]
            for row in found:
                key = (str(row["cohort"]), str(row["site"]))
                rows.append(
                    [
                        task.name,
                        f"{row['cohort']}, test folds" if role == "test" else f"external {row['cohort']}",
                        f"site {numbers.setdefault(key, len(numbers) + 1)}",
                        label(row["metric"]),
                        estimate(row),
                        count(row["n"]),
                    ]
                )
    return rows


def _versions(config: ModelConfig) -> str:
    made = config.made_with
    packages = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
    commit = made.get("code", {}).get("commit", "")
    return (
        f"Layout {config.format}; trained with Equipoise {made.get('equipoise', 'of an unknown version')}"
        + (f" (commit {commit[:12]})" if commit else "")
        + f", Python {made.get('python', '')}, {packages}. Releases that read this layout give the same predictions "
        "up to rounding."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
