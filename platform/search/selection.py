"""Selection of the winning trial by inner validation, and ``best.yaml``, the winner as a complete study."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from equipoise.datasets.atomic_io import write_json, write_text
from equipoise.datasets.remote.addresses import is_remote
from equipoise.datasets.remote.working_copies import is_working_copy
from equipoise.platform.registry import entries, get
from equipoise.platform.search.configuration import merge_config
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.space import SLOTS
from equipoise.platform.search.trial_records import Trial

if TYPE_CHECKING:
    from equipoise.platform.study.schema import Study


def select_winner(trials: Sequence[Trial], params: SearchParams) -> Trial:
    """The winner among trials that ran all their folds.

    ``best``: highest mean of the metric over folds; the first of equals. ``one_standard_error`` (Breiman et al.
    1984): the simplest trial whose mean is not more than one standard error of the best one's mean below it. A trial
    is simpler if it has fewer parameters; then if its aggregator, weighting and strategy are cheaper, in the order in
    which the registries list them; then the better mean decides. Seeds are not samples of patients and do not reduce
    the error.

    Raises
    ------
    ValueError
        If no trial ran all its folds.
    """
    done = [trial for trial in trials if trial.ok]
    if not done:
        raise ValueError("no trial ran all its folds")
    best = max(done, key=lambda trial: (trial.objective, -trial.index))
    if params.select == "best" or isnan(best.objective_se):
        return best
    near = [trial for trial in done if trial.objective >= best.objective - best.objective_se]
    return min(near, key=lambda trial: (*simplicity(trial), -trial.objective, trial.index))


def simplicity(trial: Trial) -> tuple[int, ...]:
    """Parameters of the model, then positions of aggregator, weighting and strategy in their registries; smaller is
    simpler."""
    chosen = (("aggregators", "aggregation"), ("weightings", "weighting"), ("strategies", "strategy"))
    positions = (
        list(entries(registry)).index(str(trial.config[SLOTS[slot]])) if SLOTS[slot] in trial.config else 0
        for registry, slot in chosen
    )
    return (trial.parameters, *positions)


def write_best(
    study: Study, winner: Trial, trials: Sequence[Trial], params: SearchParams, folder: Path
) -> None:
    """Write ``best.yaml`` and ``best.json`` under ``folder`` (``search/``)."""
    settings = rebase_paths(merge_config(study.resolved(), winner.config), study.base, folder)
    settings["name"] = f"{study.name}-best"
    del settings["search"]
    default = next((trial for trial in trials if trial.index == 0), None)
    lines = [
        f"# The winner of the search of study {study.name}: trial {winner.name} of {len(trials)}.",
        f"# {winner.metric} {winner.objective:.4f} on inner validation ({folds_text(winner)})"
        + ("" if default is None or not default.folds else f"; the study as written {default.objective:.4f}")
        + ".",
        "# It was chosen on these development patients, so its cross-validation over them is biased upwards. Patients",
        "# that the search never saw measure it: `equipoise search --test`, or external cohorts.",
    ]
    if winner.changes:
        lines.append(
            "# Settings changed while it trained; these are the last ones, its record holds all of them."
        )
    write_text(folder / "best.yaml", "\n".join(lines) + "\n" + yaml.safe_dump(settings, sort_keys=False))
    write_json(
        folder / "best.json",
        {
            "trial": winner.name,
            "index": winner.index,
            "metric": winner.metric,
            "objective": winner.objective,
            "objective_se": winner.objective_se,
            "select": params.select,
            "config": winner.config,
            "values": winner.means,
        },
    )


def folds_text(trial: Trial) -> str:
    """``3 folds``, ``3 folds x 2 seeds``."""
    folds = len(trial.fold_means)
    return f"{folds} folds" + (f" x {len(trial.folds) // folds} seeds" if len(trial.folds) > folds else "")


def rebase_paths(settings: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """Resolved settings whose paths start from another folder; absolute ones and addresses stay as they are.

    In a working copy paths become absolute: the next machine has it elsewhere.
    """
    old, new = old.resolve(), new.resolve()

    def moved(path: str | None) -> str | None:
        if path is None or is_remote(path) or Path(path).expanduser().is_absolute():
            return path
        return str(old / path) if is_working_copy(new) else os.path.relpath(old / path, new)

    def moved_params(kind: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
        paths = get(kind, name).attribute("paths")
        return {key: moved(value) if key in paths else value for key, value in given.items()}

    def table(source: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if source is None else source | {"path": moved(source["path"])}

    cohorts = [
        cohort
        | {
            "clinical": table(cohort["clinical"]),
            "slides": table(cohort["slides"]),
            "slides_dir": moved(cohort["slides_dir"]),
            "omics": {modality: table(source) for modality, source in cohort["omics"].items()},
            "site": cohort["site"] | {"institution": moved(cohort["site"]["institution"])},
        }
        for cohort in settings["cohorts"]
    ]
    features = dict(settings["features"])
    features["store"] = moved(features["store"])
    if features.get("imported"):
        paths = [moved(path) for path in features["imported"]["path"]]
        features["imported"] = features["imported"] | {"path": paths}
    if features.get("slide_encoder"):
        features["slide_encoder_params"] = moved_params(
            "slide_encoders", features["slide_encoder"], features["slide_encoder_params"]
        )
    rna = dict(settings["tables"]["rna"])
    rna["adapter"] = moved(rna["adapter"])
    if rna["encoder"] is not None:
        params = moved_params("rna_encoders", rna["encoder"]["name"], rna["encoder"]["params"])
        rna["encoder"] = rna["encoder"] | {"params": params}
    if rna["gene_sets"] is not None:
        rna["gene_sets"] = rna["gene_sets"] | {"file": moved(rna["gene_sets"]["file"])}
    training = settings["training"] | {"start": moved(settings["training"]["start"])}
    federation = settings["federation"]
    if federation is not None:
        sites = federation["sites"] | {"table": moved(federation["sites"]["table"])}
        federation = federation | {"sites": sites}
    return settings | {
        "cohorts": cohorts,
        "features": features,
        "tables": settings["tables"] | {"rna": rna},
        "training": training,
        "federation": federation,
    }
