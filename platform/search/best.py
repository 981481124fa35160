"""``best.yaml``: the winner as a complete study, with the same cohorts, that runs from where it lies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from equipoise.datasets.remote.addresses import is_remote
from equipoise.datasets.whole_files import write_json, write_text
from equipoise.platform.search.configuration import settings_of
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.trials import Trial

if TYPE_CHECKING:
    from equipoise.platform.study import Study


def write_best(
    study: Study, winner: Trial, trials: Sequence[Trial], params: SearchParams, folder: Path
) -> None:
    """Write ``best.yaml`` and ``best.json`` under ``folder`` (``search/``)."""
    settings = rebased(settings_of(study.resolved(), winner.config), study.base, folder)
    settings["name"] = f"{study.name}-best"
    del settings["search"]
    default = next((trial for trial in trials if trial.index == 0), None)
    lines = [
        f"# The winner of the search of study {study.name}: trial {winner.name} of {len(trials)}.",
        f"# {winner.metric} {winner.objective:.4f} on inner validation ({folds_text(winner)})"
        + ("" if default is None or not default.folds else f"; the study as written {default.objective:.4f}")
        + ".",
        "# Chosen on these development patients: its own cross-validation over them flatters it. Patients that the",
        "# search never saw measure it: `equipoise search --test`, or external cohorts.",
    ]
    if winner.changes:
        lines.append(
            "# Settings changed while it trained; these are the last ones, all of them stand in its record."
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
    folds = len(trial.by_patients)
    return f"{folds} folds" + (f" x {len(trial.folds) // folds} seeds" if len(trial.folds) > folds else "")


def rebased(settings: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """Resolved settings whose paths start from another folder; absolute ones and addresses stay as they are."""
    old, new = old.resolve(), new.resolve()

    def moved(path: str | None) -> str | None:
        if path is None or is_remote(path) or Path(path).expanduser().is_absolute():
            return path
        return os.path.relpath(old / path, new)

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
    federation = settings["federation"]
    if federation is not None:
        sites = federation["sites"] | {"table": moved(federation["sites"]["table"])}
        federation = federation | {"sites": sites}
    return settings | {"cohorts": cohorts, "features": features, "federation": federation}
