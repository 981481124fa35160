"""Whether new slides are like the training slides, without labels: embedding, stain, pixel size, tissue, tiles.

Per slide, every check has a p value: the share of training slides, with the new one among them, that are at least as
far out. A slide is flagged where it is at most :data:`LEVEL`, or where the slide lies outside all training slides if
they are too few for that. With five checks about one in twenty slides like those of training gets a flag.

Per batch of patients (a hospital, a day) two tests find what no single slide shows
(:mod:`~equipoise.platform.prediction.two_samples`). *Location*: the patients' mean against that of a training cohort,
with the covariance within cohorts in proportion to how much this one varies. *Spread*: the distances of the patients
against those of the cohort's slides. A batch is flagged if it differs from every training cohort, and from all of them
together: new patients of one of several training hospitals raise no flag.

A flag says that slides differ, not that predictions are wrong: stain may differ and the prediction hold, and a model
may fail on slides without any flag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import DataError
from equipoise.platform.prediction.reference import (
    EVERYBODY,
    FEWEST_SLIDES,
    ValueReference,
    VectorReference,
    means_by_patient,
)
from equipoise.platform.prediction.two_samples import energy_test, location_test

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

#: p value at which a slide or a batch is flagged.
LEVEL = 0.01
#: Fewest patients of a batch.
FEWEST_PATIENTS = 5
#: Relative difference up to which pixel sizes count as the same.
PIXEL_SIZE_TOLERANCE = 0.05

#: Vectors of a slide that are checked: name → what it is for readers.
VECTORS = {"embedding": "mean features of the tiles", "stain": "colour of the tissue"}
#: Numbers of a slide that are checked: column → (what it is, unit).
VALUES = {"tissue_mm2": ("tissue area", "mm²"), "tiles": ("number of tiles", "tiles")}
#: Column with the pixel size in um/px.
PIXEL_SIZE = "mpp"

#: ``value`` in units of the check (standard deviations for vectors), ``percentile`` among the training slides (0 to 1).
SLIDE_COLUMNS = ("slide", "patient", "check", "value", "percentile", "p", "flagged", "reason")
#: ``nearest`` is the training cohort that the batch differs from least (``all``: all of them together), ``shift`` the
#: distance from it in standard deviations per component; ``farther`` the probability that a new slide lies farther
#: from the common mean than one of its slides (0.5 if they do not differ).
BATCH_COLUMNS = (
    "check", "patients", "slides", "shift", "nearest", "p_location", "farther", "p_spread", "flagged", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class SlideSet:
    """Slides with what is known about them.

    Attributes
    ----------
    slide, patient, cohort
        ``[N]`` names; the cohort is for training slides.
    vectors
        ``embedding``, ``[N, D]`` mean features of the tiles, and ``stain``, ``[N, 3]`` mean optical densities. A row of
        NaN is a slide of which it is not known; a vector that no slide has may be left out.
    values
        ``mpp``, ``tissue_mm2``, ``tiles``, and ``ink`` and ``blur`` of a look at the thumbnail: ``[N]``, NaN where
        unknown.
    """

    slide: Sequence[str]
    patient: Sequence[str]
    cohort: Sequence[str]
    vectors: Mapping[str, Floats]
    values: Mapping[str, Floats]

    def where(self, chosen: NDArray[np.bool_]) -> SlideSet:
        """The slides that are chosen, ``[N]``."""
        slide, patient, cohort = (
            np.asarray(names, object)[chosen].tolist() for names in (self.slide, self.patient, self.cohort)
        )
        vectors = {name: np.asarray(vector)[chosen] for name, vector in self.vectors.items()}
        values = {name: np.asarray(value)[chosen] for name, value in self.values.items()}
        return SlideSet(slide, patient, cohort, vectors, values)


@dataclass(frozen=True)
class DriftReference:
    """What the training slides were like; holds no slide.

    Attributes
    ----------
    vectors, values
        Check → distribution.
    pixel_sizes
        um/px of the training slides, ascending, each once.
    """

    vectors: Mapping[str, VectorReference]
    values: Mapping[str, ValueReference]
    pixel_sizes: tuple[float, ...]

    @classmethod
    def fit(cls, slides: SlideSet) -> DriftReference:
        """Summarise training slides.

        Raises
        ------
        DataError
            If there are too few.
        """
        vectors = {}
        for name in VECTORS:
            known = _known(slides, name)
            if name == "embedding" or len(set(np.asarray(slides.patient, str)[known])) >= FEWEST_SLIDES:
                part = slides.where(known)
                vectors[name] = VectorReference.fit(part.vectors[name], part.patient, part.cohort)
        values = {name: ValueReference.of(slides.values[name]) for name in VALUES if name in slides.values}
        mpp = np.asarray(slides.values.get(PIXEL_SIZE, ()), float)
        sizes = sorted({float(f"{v:.3g}") for v in mpp[~np.isnan(mpp)]})
        return cls(vectors, {n: v for n, v in values.items() if len(v.values)}, tuple(sizes))

    @property
    def checks(self) -> tuple[str, ...]:
        """Names of the checks that the reference allows."""
        return (*self.vectors, *self.values, *([PIXEL_SIZE] if self.pixel_sizes else ()))

    def slides(self, slides: SlideSet, level: float = LEVEL) -> pd.DataFrame:
        """Every check of every slide: a table with ``SLIDE_COLUMNS``.

        Checks that neither reference nor slide allows are left out.
        """
        import pandas as pd

        parts = [*self._vector_checks(slides, level), *self._value_checks(slides, level)]
        if self.pixel_sizes and PIXEL_SIZE in slides.values:
            parts.append(self._pixel_size_check(slides))
        if not parts:
            return pd.DataFrame(columns=list(SLIDE_COLUMNS))
        table = pd.concat(parts, ignore_index=True)
        return table.sort_values(["slide", "check"], kind="stable", ignore_index=True)

    def batch(self, slides: SlideSet, rng: np.random.Generator, level: float = LEVEL) -> pd.DataFrame:
        """Whether the patients together differ from those of training: a table with ``BATCH_COLUMNS``.

        Parameters
        ----------
        slides
            New slides of one source.
        rng
            Draws the permutations.
        level
            p value at which the batch is flagged.
        """
        import pandas as pd

        rows = []
        for name, reference in self.vectors.items():
            part = slides.where(_known(slides, name))
            if not len(part.slide):
                continue
            rows.append(_batch_row(name, reference, part, rng, level))
        return pd.DataFrame(rows, columns=list(BATCH_COLUMNS))

    def _vector_checks(self, slides: SlideSet, level: float) -> Iterator[pd.DataFrame]:
        for name, reference in self.vectors.items():
            part = slides.where(_known(slides, name))
            if not len(part.slide):
                continue
            distance = reference.distance(part.vectors[name])
            p, percentile = reference.distances.upper_p(distance), reference.distances.percentile(distance)
            usual = float(np.median(reference.distances.values))
            reasons = [
                f"{VECTORS[name]}: {d:.1f} standard deviations from the training mean, where half of the training "
                f"slides are within {usual:.1f}; {_rarity(q, reference.slides)}"
                for d, q in zip(distance, p, strict=True)
            ]
            limit = max(level, 1 / (reference.slides + 1))
            yield _slide_table(part, name, distance, percentile, p, p <= limit + 1e-12, reasons)

    def _value_checks(self, slides: SlideSet, level: float) -> Iterator[pd.DataFrame]:
        for name, reference in self.values.items():
            if name not in slides.values:
                continue
            value = np.asarray(slides.values[name], float)
            part, value = slides.where(~np.isnan(value)), value[~np.isnan(value)]
            p = reference.two_sided_p(value)
            what, unit = VALUES[name]
            n, low, high = len(reference.values), reference.values[0], reference.values[-1]
            reasons = [
                f"{what} {v:.3g} {unit}; training slides have {low:.3g} to {high:.3g}; {_rarity(q / 2, n)}"
                for v, q in zip(value, p, strict=True)
            ]
            limit = max(level, 2 / (n + 1))
            yield _slide_table(part, name, value, reference.percentile(value), p, p <= limit + 1e-12, reasons)

    def _pixel_size_check(self, slides: SlideSet) -> pd.DataFrame:
        value = np.asarray(slides.values[PIXEL_SIZE], float)
        part, value = slides.where(~np.isnan(value)), value[~np.isnan(value)]
        known = np.asarray(self.pixel_sizes)
        apart = np.abs(np.log(value[:, None] / known)).min(axis=1) if len(value) else np.empty(0)
        listed = ", ".join(f"{size:g}" for size in self.pixel_sizes[:6])
        more = " and others" if len(self.pixel_sizes) > 6 else ""
        reasons = [f"pixel size {v:.3g} um/px; training slides have {listed}{more}" for v in value]
        flagged = apart > np.log1p(PIXEL_SIZE_TOLERANCE)
        percentile = ValueReference(known).percentile(value)
        return _slide_table(
            part, PIXEL_SIZE, value, percentile, np.full(len(value), np.nan), flagged, reasons
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "vectors": {name: reference.to_dict() for name, reference in self.vectors.items()},
            "values": {name: reference.values.tolist() for name, reference in self.values.items()},
            "pixel_sizes": list(self.pixel_sizes),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> DriftReference:
        """From :meth:`to_dict`; raises DataError if it is something else."""
        try:
            vectors = {
                name: VectorReference.from_dict(v) for name, v in state["vectors"].items() if name in VECTORS
            }
            values = {
                n: ValueReference(np.asarray(v, float)) for n, v in state["values"].items() if n in VALUES
            }
            sizes = tuple(float(size) for size in state["pixel_sizes"])
        except (KeyError, TypeError, ValueError, AttributeError) as wrong:
            raise DataError(
                f"not the state of a drift reference: {wrong!r}", where="drift reference"
            ) from wrong
        return cls(vectors, values, sizes)


def _batch_row(
    name: str, reference: VectorReference, part: SlideSet, rng: np.random.Generator, level: float
) -> tuple[Any, ...]:
    whitened = means_by_patient(reference.whitened(part.vectors[name]), part.patient)
    patients = len(whitened)
    if patients < FEWEST_PATIENTS:
        reason = f"{patients} patients are too few for a test of the batch; {FEWEST_PATIENTS} are needed"
        nothing = (np.nan, "", np.nan, np.nan, np.nan, False)
        return (name, patients, len(part.slide), *nothing, reason)
    distance = reference.distance(part.vectors[name])
    first = np.unique(np.asarray(part.patient, str), return_index=True)[1]  # one slide of each patient
    everybody = reference.centres[EVERYBODY].patients
    found = []
    for cohort, centre in reference.centres.items():
        if cohort == EVERYBODY and len(reference.centres) == 2:
            continue  # the only cohort is everybody
        inside = cohort != EVERYBODY
        covariance = reference.within if inside else reference.total
        degrees = everybody - (len(reference.centres) - 1 if inside else 1)
        location = location_test(whitened, centre, covariance, degrees)
        _, p_spread = energy_test(distance[first], centre.distances.values, rng)
        found.append((min(location.p, p_spread), -location.shift, cohort, location, p_spread))
    smaller, _, nearest, location, p_spread = max(found, key=lambda one: one[:2])
    farther = float(reference.centres[nearest].distances.percentile(distance).mean())
    flagged = smaller <= level / 2 + 1e-12  # the smaller of two
    whole = "the training patients" if nearest == EVERYBODY else f"training cohort {nearest}"
    reason = (
        f"{VECTORS[name]}: on average {location.shift:.2f} standard deviations per component from {whole} "
        f"({_p(location.p)}); a new slide lies farther out than one of its slides in {farther:.0%} of pairs "
        f"({_p(p_spread)})"
    )
    values = (location.shift, nearest, location.p, farther, p_spread, flagged)
    return (name, patients, len(part.slide), *values, reason)


def _slide_table(
    part: SlideSet,
    check: str,
    value: Floats,
    percentile: Floats,
    p: Floats,
    flagged: NDArray[np.bool_],
    reasons: list[str],
) -> pd.DataFrame:
    import pandas as pd

    columns = (
        list(part.slide),
        list(part.patient),
        check,
        value,
        percentile,
        p,
        np.asarray(flagged, bool),
        reasons,
    )
    return pd.DataFrame(dict(zip(SLIDE_COLUMNS, columns, strict=True)))


def _known(slides: SlideSet, name: str) -> NDArray[np.bool_]:
    """Which slides have a vector."""
    if name not in slides.vectors:
        return np.zeros(len(slides.slide), bool)
    return ~np.isnan(np.asarray(slides.vectors[name], float)).any(axis=1)


def _rarity(p: float, training: int) -> str:
    """How many training slides are as far out, of a one-sided p value."""
    others = round(p * (training + 1)) - 1
    if p > 0.1:
        return "as training slides are"
    return (
        f"{others} of {training} training slides are as far out"
        if others
        else "no training slide is as far out"
    )


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
