"""The federated model beside the study's own training, which has all patients in one place, task by task."""

import math
from typing import Any

from equipoise.platform.evaluation.leaderboard import Leaderboard, compare
from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.paired import Candidate
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.samples import ALL, MODEL
from equipoise.platform.report.blocks import Block, Cell, Heading, Table, Text, Tone
from equipoise.platform.report.formatting import count, estimate, interval, label, number, p_value, percent
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.balancing import method_name
from equipoise.platform.report.strategies import federated_candidate, why_not_comparable
from equipoise.platform.report.style import Download

#: Name of the study's own training among candidates.
_OWN = "own training"


def beside_own_training(run: RunFiles) -> list[Block]:
    """A table with both ways of training and their paired difference; empty without a federation by folds."""
    if run.predictions is None or (federated := federated_candidate("federated", run)) is None:
        return []
    title = Heading("Beside the study's own training")
    own = Candidate(_OWN, run.predictions)
    if reason := why_not_comparable(federated, own):
        return [title, Text(f"Not compared: {reason}.", tone="muted")]
    params = EvaluationParams.model_validate(run.study.get("evaluation") or {})
    order = [task.name for task in run.tasks]
    board = compare([own, federated], params, int(run.study.get("seed") or 0), _OWN, order)
    level = f"{percent(run.confidence)} CI"
    return [
        title,
        Table(
            [
                "Task and metric",
                f"Own training, {method_name(run.study)} ({level})",
                f"{federated.metadata['balancing']} ({level})",
                "Federated − own",
                "Labelled patients",
            ],
            [_line(board, task, federated.name) for task in board.tasks],
            "Test folds: the model that was trained with all training patients in one place, and the federated model, "
            "on the same patients and folds. The difference is paired; its colour says whether p, corrected for all "
            f"tasks, is below {percent(1 - run.confidence)}. 'equipoise leaderboard' ranks federations and balancing "
            "methods of several runs in the same way.",
            numeric=frozenset([1, 2, 3, 4]),
            download=Download("federated-beside-own.csv", board.differences),
        ),
    ]


def _line(board: Leaderboard, task: str, federated: str) -> list[str | Cell]:
    metric = PRIMARY[board.tasks[task]]
    rows = board.estimates
    rows = rows[(rows["task"] == task) & (rows["metric"] == metric) & (rows["class"] == "")]
    rows = rows[(rows["role"] == "test") & (rows["cohort"] == ALL) & (rows["predictor"] == MODEL)]
    by_method: dict[str, dict[str, Any]] = {str(row["method"]): row for row in rows.to_dict("records")}
    cells: list[str | Cell] = [f"{task}, {label(metric)}"]
    for name in (_OWN, federated):
        cells.append(estimate(by_method[name]) if name in by_method else Cell("–", tone="muted"))
    n = by_method[_OWN]["n"] if _OWN in by_method else None
    return [*cells, _difference(board, task, metric, federated), count(n)]


def _difference(board: Leaderboard, task: str, metric: str, federated: str) -> Cell:
    """Federated minus own, whichever of the two was the reference of the comparison."""
    table = board.differences
    keep = (table["task"] == task) & (table["metric"] == metric) & (table["class"] == "")
    keep &= (table["role"] == "test") & (table["cohort"] == ALL) & (table["predictor"] == MODEL)
    for row in table[keep].to_dict("records"):
        if {row["run"], row["reference"]} != {_OWN, federated} or not math.isfinite(row["difference"]):
            continue
        sign = 1 if row["run"] == federated else -1
        low, high = sorted((sign * row["low"], sign * row["high"]))
        value = sign * row["difference"]
        clear = math.isfinite(row["p_joint"]) and row["p_joint"] < 1 - board.params.confidence
        tone: Tone = "" if not clear else "good" if value > 0 else "bad"
        return Cell(f"{number(value)} ({interval(low, high)})", tone=tone, note=p_value(row["p_joint"]))
    return Cell("–", tone="muted")
