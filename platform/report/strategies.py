"""Federations among runs that are compared: the federated model of a run as one more candidate.

A federation by the plan ``folds`` predicts the test patients of the study's own folds, so that it can be compared with
any balancing method on the same patients, pair by pair. Other plans test other models on other parts and cannot.
"""

from pathlib import Path

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.paired import Candidate, require_comparable
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.report.run_files import FederationFiles, RunFiles
from equipoise.platform.report.sections.balancing import method_name

#: Predictions of a federation by the study's own folds.
PREDICTIONS = Path("federated/predictions/folds/federated.parquet")


def strategy_name(run: RunFiles) -> str:
    """``fedprox``; with the server aggregation behind it where that is not the mean."""
    params = FederationFiles(run.folder).setting.get("federation") or run.study.get("federation") or {}
    strategy, aggregation = (
        str(params.get("strategy", "federated")),
        str(params.get("server_aggregation", "mean")),
    )
    return strategy if aggregation == "mean" else f"{strategy}, {aggregation}"


def federated_candidate(name: str, run: RunFiles) -> Candidate | None:
    """The federated model of a run, named after run and strategy; None without a federation by folds."""
    path = run.folder / PREDICTIONS
    if not path.exists():
        return None
    strategy = strategy_name(run)
    metadata = {
        "model": str((run.study.get("model") or {}).get("kind", "")),
        "balancing": f"{method_name(run.study)}, federated by {strategy}",
        "seed": str(run.study.get("seed", "")),
    }
    return Candidate(f"{name} ({strategy})", read_predictions(path), None, metadata)


def why_not_comparable(candidate: Candidate, reference: Candidate) -> str:
    """The first difference of patients, folds or labels; empty if the two can be compared."""
    try:
        shared = require_comparable([reference, candidate])
    except DataError as differ:
        return str(differ).splitlines()[1].strip() if "\n" in str(differ) else str(differ)
    lost = sorted(set(reference.predictions["task"]) - set(shared))
    return f"it lacks the tasks {', '.join(lost)}" if lost else ""
