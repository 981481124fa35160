"""Scores of the tiles of cases, with any attribution method, from stored features: no slide is read.

A case that several models explain (the folds' models of an external patient) gets the mean of their scores, which is
the score of the mean of their outputs, and their standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.explain.explained import Explained, TrainedModel
from equipoise.platform.explain.outputs import ExplainedOutput, explained_outputs
from equipoise.platform.explain.tile_scores import TileScores
from equipoise.platform.registry import get
from equipoise.platform.training.params import entry_params

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case
    from equipoise.platform.explain.entries import AttributionParams


class Attribution(Protocol):
    """An attribution method, built as ``Method(params)``. One that is ``complete`` also has ``difference(case)``."""

    def scores(self, case: Explained) -> Tensor:
        """``[N]`` a score for each tile of the case."""
        ...


@dataclass(frozen=True)
class Method:
    """An attribution method of the registry with its parameters.

    Attributes
    ----------
    name
        Its name in the registry.
    attribution
        What computes scores.
    signed, complete
        As the entry says (:class:`~equipoise.platform.explain.entries.AttributionParams`).
    unit
        What a score means, with ``{output}`` in place of the explained number.
    """

    name: str
    attribution: Attribution
    signed: bool = True
    complete: bool = False
    unit: str = "{output}"

    @classmethod
    def named(cls, name: str, params: Mapping[str, Any] | None = None) -> Method:
        """The method of that name.

        Raises
        ------
        StudyError
            If there is none, or it has no such parameter.
        """
        entry = get("attributions", name)
        try:
            own = cast("AttributionParams", entry_params("attributions", name, dict(params or {})))
        except ValueError as error:
            raise StudyError(str(error), where=f"method {name}") from error
        said = {key: entry.attribute(key) for key in ("signed", "complete", "unit")}
        return cls(name, entry.load()(own), **said)


@dataclass(frozen=True, eq=False)
class CaseScores:
    """Scores of all tiles of a case, slides one behind the other, by each of F models.

    Attributes
    ----------
    case
        The case.
    explained
        The case under each model.
    method
        What made the scores.
    each
        float64 ``[F, N]``.
    """

    case: Case
    explained: tuple[Explained, ...]
    method: Method
    each: NDArray[np.float64]

    @property
    def output(self) -> ExplainedOutput:
        """What is explained."""
        return self.explained[0].output

    @property
    def mean(self) -> NDArray[np.float64]:
        """``[N]`` mean over the models."""
        return self.each.mean(axis=0)

    @property
    def spread(self) -> NDArray[np.float64] | None:
        """``[N]`` standard deviation over the models; None for a single one."""
        return self.each.std(axis=0, ddof=1) if len(self.each) > 1 else None

    def by_slide(self, *, synthetic: bool = False) -> list[TileScores]:
        """The map of each slide of the case."""
        maps, start = [], 0
        task = self.output.task.head
        for at, (slide, count) in enumerate(zip(self.case.slides, self.case.tiles, strict=True)):
            rows = slice(start, start + count)
            start += count
            xy = self.case.coords[rows]
            maps.append(
                TileScores(
                    slide=slide,
                    patient=self.case.patient,
                    cohort=self.case.cohort,
                    task=task.name,
                    kind=task.kind,
                    class_name=self.output.class_name,
                    method=self.method.name,
                    x=xy[:, 0],
                    y=xy[:, 1],
                    side=tile_side(self.case, at),
                    score=self.mean[rows].astype(np.float32),
                    unit=self.method.unit.format(output=self.output.unit),
                    spread=None if self.spread is None else self.spread[rows].astype(np.float32),
                    synthetic=synthetic,
                )
            )
        return maps


def explain_case(
    models: Sequence[TrainedModel], case: Case, task: str, class_name: str | None, method: Method
) -> list[CaseScores]:
    """Scores of the tiles of a case, for the class that is named or every class of the task.

    Parameters
    ----------
    models
        One or more that have not learned from the patient.
    case
        The case, with tiles.
    task, class_name
        What is explained; a multiclass task without a class gives one result per class.
    method
        How.

    Raises
    ------
    StudyError
        If the models do not read tiles, or the method does not work with them.
    DataError
        If the case has no tile.
    """
    if not models:
        raise StudyError("there is no model to explain")
    if not models[0].targets.shape.features:
        raise StudyError(
            "the model reads tables only, so that no tile of a slide can be explained",
            fix="for tables, `equipoise explain` lists genes, pathways and modalities",
        )
    if not len(case.bag):
        raise DataError(
            "the patient has no tile to explain",
            where=f"patient {case.patient} of {case.cohort}",
            fix="choose a patient whose slides have features",
        )
    results = []
    names = [output.class_name for output in explained_outputs(models[0].targets, task, class_name)]
    for name in names:
        explained = tuple(
            Explained.of(trained, case, explained_outputs(trained.targets, task, name)[0])
            for trained in models
        )
        scores = [method.attribution.scores(each).double().cpu().numpy() for each in explained]
        results.append(CaseScores(case, explained, method, np.stack(scores)))
    return results


def tile_scores(
    models: Sequence[TrainedModel],
    cases: Iterable[Case],
    task: str,
    class_name: str | None = None,
    method: str = "gradient_input",
    *,
    params: Mapping[str, Any] | None = None,
    synthetic: bool = False,
) -> list[TileScores]:
    """Maps of the slides of some cases, without checks.

    Parameters
    ----------
    models
        Trained models of one study: one, or the models of the folds, whose scores are averaged.
    cases
        With tiles; slides are not read.
    task, class_name
        What is explained; every class of a multiclass task if none is named.
    method, params
        Name of an attribution method (``equipoise ls attributions``) and its parameters.
    synthetic
        Whether the slides were generated.

    Returns
    -------
    list of TileScores
        One for each slide and class.

    Raises
    ------
    StudyError
        If task, class or method are unknown, or the method does not work with the models.
    DataError
        If a case has no tile, or it is not known how large its tiles are.
    """
    chosen = Method.named(method, params)
    return [
        scores
        for case in cases
        for result in explain_case(models, case, task, class_name, chosen)
        for scores in result.by_slide(synthetic=synthetic)
    ]


def tile_side(case: Case, slide: int) -> float:
    """Side of the tiles of a slide in level-0 pixels; where its resolution is not known, their smallest distance.

    Raises
    ------
    DataError
        If neither is known.
    """
    mpp = case.mpp[slide] if case.mpp else math.nan
    if math.isfinite(mpp) and mpp > 0 and math.isfinite(case.extent):
        return float(case.extent / mpp)
    start = sum(case.tiles[:slide])
    xy = case.coords[start : start + case.tiles[slide]]
    steps = [np.diff(np.unique(xy[:, axis])) for axis in (0, 1)]
    steps = [step for step in steps if len(step)]
    if not steps:
        raise DataError(
            "it is not known how large the tiles are: the slide has no um per pixel and a single tile",
            where=f"slide {case.slides[slide]}",
            fix="give the resolution in the slides table (MPP)",
        )
    return float(min(step.min() for step in steps))
