"""Predictions alone, ours or STAMP's, as metrics, tables and a small page: no study and no run is needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise import __version__
from equipoise.platform.errors import StudyError
from equipoise.platform.evaluation.detail_tables import write_details
from equipoise.platform.evaluation.evaluate import evaluate
from equipoise.platform.evaluation.metrics_table import write_metrics
from equipoise.platform.evaluation.operating_points import operating_points
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.pooled import pooled_samples
from equipoise.platform.evaluation.predictions import write_predictions
from equipoise.platform.evaluation.stamp_import import read_any
from equipoise.platform.registry import get
from equipoise.platform.report.formatting import count
from equipoise.platform.report.page import Page, PageSection, render_page
from equipoise.platform.report.run_files import RunFiles

#: Sections that need nothing but predictions and what is computed from them.
_SECTIONS = ("classification", "regression", "survival", "external")
_SHOWN = ["role", "cohort", "task", "class", "metric", "value", "low", "high", "n", "n_pos", "note"]


@dataclass(frozen=True)
class EvaluatedPredictions:
    """The predictions table with its metrics, and the page if one was written."""

    predictions: pd.DataFrame
    metrics: pd.DataFrame
    params: EvaluationParams
    page: Path | None = None

    @property
    def text(self) -> str:
        """Metrics of the model over all folds, and decisions at the operating point of headlines, for a terminal."""
        rows = self.metrics[
            (self.metrics["predictor"] == "model")
            & (self.metrics["fold"] == "all")
            & (self.metrics["site"] == "all")
            & (self.metrics["role"] != "val")
        ]
        parts = [rows[_SHOWN].to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="–")]
        points = operating_points(
            pooled_samples(self.predictions, self.params), self.predictions, self.params
        )
        points = points[points["headline"] & points["value"].notna()]
        if len(points):
            columns = [
                "role",
                "cohort",
                "task",
                "point",
                "threshold",
                "metric",
                "value",
                "low",
                "high",
                "n",
                "note",
            ]
            shown = points[columns].to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="–")
            parts.append(f"Every patient once, at the chosen operating point:\n{shown}")
        return "\n\n".join(parts)


def evaluation_params(overrides: Mapping[str, Any]) -> EvaluationParams:
    """Parameters from dotted settings such as ``evaluation.confidence``.

    Raises
    ------
    StudyError
        If a setting is no setting of an evaluation, or has an impossible value.
    """
    from pydantic import ValidationError

    values: dict[str, Any] = {}
    for key, value in overrides.items():
        section, *names = key.split(".")
        if section != "evaluation" or not names:
            raise StudyError(
                f"{key!r} is no setting of an evaluation of predictions alone",
                where="--set",
                fix="set evaluation.…, for example --set evaluation.confidence=0.9",
            )
        inner = values
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise StudyError(f"{key!r} is inside a setting that has a value already", where="--set")
        inner[names[-1]] = value
    if "subgroups" in values:
        raise StudyError(
            "subgroups need the clinical tables of a study",
            where="--set evaluation.subgroups",
            fix="evaluate with a study, or add a column to your own table of results",
        )
    try:
        return EvaluationParams.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["evaluation", *map(str, first["loc"])])
        raise StudyError(str(first["msg"]), where=f"--set {place}") from error


def evaluate_predictions(
    tables: Sequence[str | Path],
    params: EvaluationParams,
    positive: str | None = None,
    out: Path | None = None,
    seed: int = 0,
) -> EvaluatedPredictions:
    """Metrics of predictions in our layout or STAMP's.

    Parameters
    ----------
    tables
        Files, see :func:`~equipoise.platform.evaluation.stamp_import.read_any`.
    params
        Parameters of the evaluation.
    positive
        Of a binary task in STAMP's layout: the class whose score counts.
    out
        Folder that gets ``evaluation/`` and ``report.html`` as a run folder has them; nothing is written if None.
    seed
        Of the bootstrap.
    """
    predictions = read_any(tables, positive)
    metrics = evaluate(predictions, params, seed)
    if out is None:
        return EvaluatedPredictions(predictions, metrics, params)
    from equipoise.datasets.atomic_io import write_text

    folder = out / "evaluation"
    write_predictions(predictions, folder / "predictions.parquet")
    write_metrics(metrics, folder, params)
    write_details(predictions, folder, params)
    page = out / "report.html"
    write_text(page, _page(RunFiles(out), tables))
    return EvaluatedPredictions(predictions, metrics, params, page)


def _page(run: RunFiles, tables: Sequence[str | Path]) -> str:
    parts = []
    for name in _SECTIONS:
        entry = get("sections", name)
        section = entry.load()(run, entry.params())
        if section is not None:
            parts.append(PageSection(name, section.title, section.lead, tuple(section.blocks)))
    patients = 0 if run.predictions is None else run.predictions["patient"].nunique()
    meta = (
        ("Predictions", ", ".join(Path(table).name for table in tables)),
        ("Patients", count(patients)),
        ("Tasks", count(len(run.tasks))),
    )
    return render_page(
        Page(
            "Evaluation of predictions",
            run.synthetic,
            __version__,
            meta,
            tuple(parts),
            "Equipoise evaluation",
        )
    )
