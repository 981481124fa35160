"""How far to trust a prediction: sets, drift, quality and abstention as one piece that travels with a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.platform.errors import DataError
from equipoise.platform.prediction.abstention import AbstentionRules
from equipoise.platform.prediction.conformal import LEVEL, ClassScore, Conformal
from equipoise.platform.prediction.conformal_task import check_level
from equipoise.platform.prediction.drift import DriftReference, SlideSet
from equipoise.platform.prediction.quality import QualityLimits, SlideLook

if TYPE_CHECKING:
    import pandas as pd

#: Layout of the state.
FORMAT = "equipoise-trust/1"
_AGAIN = "export the model again with this release"


@dataclass(frozen=True)
class Assessment:
    """What is to be said beside the predictions of new patients.

    Attributes
    ----------
    sets
        Sets and intervals, see :meth:`~equipoise.platform.prediction.conformal.Conformal.apply`.
    decisions
        Answers and abstentions, ``DECISION_COLUMNS`` of :mod:`~equipoise.platform.prediction.abstention`.
    drift, batch
        Checks of every slide, and of all patients together; without rows if there are none.
    quality
        Flags of slides.
    """

    sets: pd.DataFrame
    decisions: pd.DataFrame
    drift: pd.DataFrame
    batch: pd.DataFrame
    quality: pd.DataFrame

    def by_patient(self) -> pd.DataFrame:
        """One row per patient and task, to be joined to the predictions.

        Columns: ``patient task level set low high answer abstained reasons drift_percentile``: the set as ``A | B``
        (``none`` if it is empty, nothing for values and times), the reasons in one text, and the largest percentile of
        the embedding of the patient's slides among the training slides.
        """
        table = self.sets.merge(self.decisions, on=["patient", "task"], how="left")
        classes = table["kind"].isin(["binary", "multiclass"])
        table["set"] = [
            (" | ".join(labels) or "none") if of_class else ""
            for labels, of_class in zip(table["labels"], classes, strict=True)
        ]
        table["reasons"] = [" · ".join(reasons) for reasons in table["reasons"]]
        embedding = self.drift[self.drift["check"] == "embedding"]
        table["drift_percentile"] = table["patient"].map(embedding.groupby("patient")["percentile"].max())
        table["drift_percentile"] = table["drift_percentile"].astype(float)
        columns = ["patient", "task", "level", "set", "low", "high", "answer", "abstained", "reasons"]
        return table[[*columns, "drift_percentile"]]


@dataclass(frozen=True)
class Trust:
    """What was fitted on the patients of a run.

    Attributes
    ----------
    conformal
        Calibrations; None if no patient could calibrate.
    drift
        Reference of the training slides; None for models that read no slides, or with too few of them.
    quality, rules
        Limits of slides, and when there is no answer.
    notes
        What is missing, and why.
    """

    conformal: Conformal | None
    drift: DriftReference | None
    quality: QualityLimits = field(default_factory=QualityLimits)
    rules: AbstentionRules = field(default_factory=AbstentionRules)
    notes: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        predictions: pd.DataFrame,
        slides: SlideSet | None = None,
        *,
        level: float = LEVEL,
        score: ClassScore = "lac",
        class_conditional: bool = True,
        refit: bool = False,
        negatives: Mapping[str, str] | None = None,
    ) -> Trust:
        """Calibrate with the out-of-fold predictions, and summarise the slides of the development cohorts.

        Parameters
        ----------
        predictions
            The predictions table of a run.
        slides
            Slides of the development patients; None for a model that reads none.
        level, score, class_conditional, negatives
            As in :meth:`~equipoise.platform.prediction.conformal.Conformal.fit`.
        refit
            Whether new patients are scored by one model that was trained again on all patients, and not by the models
            of the folds.
        """
        notes: list[str] = []
        conformal, drift = None, None
        if (predictions["role"] == "test").any():
            conformal = Conformal.fit(
                predictions,
                level=level,
                score=score,
                class_conditional=class_conditional,
                negatives=negatives,
            )
            notes += [f"{task.task}: {note}" for task in conformal.tasks.values() for note in task.notes]
            if refit:
                without = [name for name, task in conformal.tasks.items() if task.kind == "survival"]
                notes += [f"{name}: a refitted model has no bound of survival times" for name in without]
                conformal = conformal.as_refit()
        else:
            notes.append("the run has no predictions of test patients: no sets and intervals")
        limits = QualityLimits()
        if slides is not None:
            values = slides.values
            limits = QualityLimits.fit(values["tiles"], values.get("ink", ()), values.get("blur", ()))
            try:
                drift = DriftReference.fit(slides)
            except DataError as few:
                notes.append(f"no drift check: {few.what}")
        return cls(conformal, drift, limits, AbstentionRules(), tuple(notes))

    def at(self, level: float) -> Trust:
        """The same with sets and intervals at another level; the calibration holds every level.

        Raises
        ------
        DataError
            If the level is not above 0.5 and below 1.
        """
        check_level(level)
        if self.conformal is None:
            return self
        tasks = {name: replace(task, level=level) for name, task in self.conformal.tasks.items()}
        return replace(self, conformal=Conformal(tasks))

    def assess(
        self,
        rows: pd.DataFrame,
        slides: SlideSet | None = None,
        index: pd.DataFrame | None = None,
        looks: Mapping[str, SlideLook] | None = None,
        seed: int = 0,
    ) -> Assessment:
        """What is to be said beside the predictions of new patients.

        Parameters
        ----------
        rows
            Scores of every fold model for every patient: rows of the predictions table.
        slides
            Their slides that have features.
        index
            Rows of the feature store's index of all their slides, with a column ``patient``.
        looks
            Slide → what its thumbnail shows.
        seed
            Of the permutations of the batch test.
        """
        import pandas as pd

        from equipoise.platform.prediction.drift import BATCH_COLUMNS, SLIDE_COLUMNS
        from equipoise.platform.prediction.quality import QUALITY_COLUMNS

        drift = pd.DataFrame(columns=list(SLIDE_COLUMNS))
        batch = pd.DataFrame(columns=list(BATCH_COLUMNS))
        quality = pd.DataFrame(columns=list(QUALITY_COLUMNS))
        if self.drift is not None and slides is not None and len(slides.slide):
            drift = self.drift.slides(slides)
            batch = self.drift.batch(slides, np.random.default_rng(np.random.SeedSequence(seed)))
        if index is not None and len(index):
            quality = self.quality.flags(index, looks)
        sets = (Conformal({}) if self.conformal is None else self.conformal).apply(rows)
        return Assessment(sets, self.rules.decide(sets, drift, quality), drift, batch, quality)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without names of patients or slides."""
        return {
            "format": FORMAT,
            "conformal": None if self.conformal is None else self.conformal.to_dict(),
            "drift": None if self.drift is None else self.drift.to_dict(),
            "quality": self.quality.to_dict(),
            "rules": self.rules.to_dict(),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Trust:
        """From :meth:`to_dict`.

        Raises
        ------
        DataError
            If it is something else, or of another version.
        """
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            found = state.get("format") if isinstance(state, Mapping) else None
            raise DataError(
                f"the state of trust has the format {found!r}; this release reads {FORMAT!r}",
                where="trust.json",
                fix=_AGAIN,
            )
        try:
            conformal, drift = state["conformal"], state["drift"]
            return cls(
                None if conformal is None else Conformal.from_dict(conformal),
                None if drift is None else DriftReference.from_dict(drift),
                QualityLimits.from_dict(state["quality"]),
                AbstentionRules.from_dict(state["rules"]),
                tuple(str(note) for note in state["notes"]),
            )
        except (KeyError, TypeError) as wrong:
            raise DataError(
                f"not the state of trust: {wrong!r} is missing", where="trust.json", fix=_AGAIN
            ) from wrong
        except DataError as wrong:  # of a part
            raise DataError(wrong.what, where=f"trust.json, {wrong.where}", fix=_AGAIN) from wrong
