"""Methods paragraph and Table 1, computed from the run, to paste into a manuscript."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.report.blocks import Block, Cell, Code, Heading, Section, Table
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import label, listed, percent, plural
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.balancing import method_name
from equipoise.platform.report.sections.flow import table_one
from equipoise.platform.report.style import TextFile


def build(run: RunFiles, params: SectionParams) -> Section | None:
    """Nothing for a run without patients."""
    if run.patients is None or run.patients.empty or not run.study:
        return None
    table = table_one(run, run.patients)
    prefix = "SYNTHETIC-" if run.synthetic else ""
    blocks: list[Block] = [
        Heading("Methods paragraph"),
        Code(methods_paragraph(run)),
        Heading("Table 1"),
        Code(
            as_text(table),
            downloads=(
                TextFile(f"{prefix}table-one.html", as_html(table), "text/html"),
                TextFile(f"{prefix}table-one.txt", as_text(table), "text/plain"),
            ),
        ),
    ]
    lead = "Text to paste. What stands in square brackets is for the authors; the participants have the CSV."
    return Section("Methods and Table 1", lead, blocks)


def methods_paragraph(run: RunFiles) -> str:
    """What was done, in the order of the work; every statement is a setting or a count of the run."""
    sentences = [
        "SYNTHETIC DATA: generated slides and labels." if run.synthetic else "",
        _patients(run),
        "[Source, dates, ethics approval and consent.]",
        _features(run),
        _model(run),
        _validation(run),
        _statistics(run),
        _software(run),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _part(run: RunFiles, name: str) -> Mapping[str, Any]:
    value = run.study.get(name)
    return value if isinstance(value, Mapping) else {}


def _patients(run: RunFiles) -> str:
    assert run.patients is not None
    roles = run.patients["role"]
    develop, outside = run.patients[roles == "develop"], run.patients[roles == "external"]
    tasks = listed([task.name for task in run.tasks], 10)
    text = (
        f"Models that predict {tasks} were trained and cross-validated on {plural(len(develop), 'patient')} of "
        f"{plural(develop['cohort'].nunique(), 'cohort')} ({listed(sorted(develop['cohort'].astype(str).unique()), 8)})"
    )
    if len(outside):
        names = listed(sorted(outside["cohort"].astype(str).unique()), 8)
        text += f" and tested on {plural(len(outside), 'patient')} of {names}, who took no part in training"
    excluded = 0 if run.excluded is None else len(run.excluded)
    return f"{text}; {plural(excluded, 'exclusion')} of patients or slides, each for a recorded reason."


def _features(run: RunFiles) -> str:
    features, used = _part(run, "features"), run.used_slides
    if used is None or used.empty or not features.get("encoder"):
        return ""
    return (
        f"{plural(len(used), 'slide')} were read at {features.get('mpp')} µm per pixel and cut into tiles of "
        f"{features.get('tile_px')} pixels; tiles with less than {percent(float(features.get('min_tissue') or 0))} "
        f"tissue were left out. Tiles were encoded with {features['encoder']}."
    )


def _model(run: RunFiles) -> str:
    model, training = _part(run, "model"), _part(run, "training")
    if not model.get("kind"):
        return ""
    joint = f", its tasks balanced by the method {method_name(run.study)}" if len(run.tasks) > 1 else ""
    text = f"The model was {model['kind']}{joint}"
    if training.get("epochs"):
        text += (
            f", trained for at most {training['epochs']} epochs at a learning rate of {training.get('lr')}, with early "
            f"stopping ({training.get('monitor')}, patience {training.get('patience')})"
        )
    if run.study.get("search"):
        text += "; settings were searched on inner folds of the training patients"
    return f"{text}."


def _validation(run: RunFiles) -> str:
    splits = _part(run, "splits")
    if not run.splits:
        return ""
    repeats = len({fold["repeat"] for fold in run.splits})
    again = f", repeated {repeats} times" if repeats > 1 else ""
    folds = len(run.splits) // max(repeats, 1)
    return (
        f"Patients were assigned to {plural(folds, 'fold')} (scheme {splits.get('scheme')}){again}; "
        f"{percent(float(splits.get('inner_val') or 0))} of the training patients of a fold chose epoch and cut-offs "
        "and were not tested in it. A patient without the label of a task took no part in that task; no label was "
        "imputed."
    )


def _statistics(run: RunFiles) -> str:
    evaluation = _part(run, "evaluation")
    metrics = [
        label(PRIMARY[kind]) for kind in dict.fromkeys(task.kind for task in run.tasks) if kind in PRIMARY
    ]
    if not metrics:
        return ""
    chosen = evaluation.get("threshold") or {}
    cut = ""
    if any(task.kind == "binary" for task in run.tasks):
        how = {"youden": "Youden's index"}.get(str(chosen.get("metric", "youden")), str(chosen.get("metric")))
        cut = f" Cut-offs were chosen by {how} on inner validation patients."
    outside = any(row["role"] == "external" for row in run.metric_rows)
    scored = " External cohorts were scored by the mean of the fold models." if outside else ""
    replicates = evaluation.get("bootstrap", "–")
    return (
        f"The main measures were {listed(metrics, 6)}, with {percent(run.confidence)} intervals ({replicates} "
        f"bootstrap replicates where no closed form exists).{cut}{scored}"
    )


def _software(run: RunFiles) -> str:
    versions = run.environment.get("versions") or {}
    with_ = f", Python {run.environment['python']}" if run.environment.get("python") else ""
    with_ += f", PyTorch {versions['torch']}" if versions.get("torch") else ""
    seed = f"; the seed was {run.study['seed']}" if run.study.get("seed") is not None else ""
    return f"Computations used Equipoise {run.environment.get('equipoise', '')}{with_}{seed}."


def as_text(table: Table) -> str:
    """A table as tab-separated text."""
    rows = [
        [str(column) for column in table.columns],
        *[[_plain(cell) for cell in row] for row in table.rows],
    ]
    return "\n".join("\t".join(row) for row in rows)


def as_html(table: Table) -> str:
    """A table as HTML that word processors read."""
    head = Markup("").join(Markup("<th>{}</th>").format(column) for column in table.columns)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(Markup("<td>{}</td>").format(_plain(cell)) for cell in row)
        )
        for row in table.rows
    )
    page = Markup('<!doctype html><meta charset="utf-8"><title>Table 1</title><table><tr>{}</tr>{}</table>')
    return str(page.format(head, body))


def _plain(cell: str | Cell) -> str:
    if not isinstance(cell, Cell):
        return cell
    return f"{cell.text} ({cell.note})" if cell.note else cell.text
