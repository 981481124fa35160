"""What vectors of the training slides were like: a summary that new vectors are compared with, without the slides.

The model of the vectors is a Gaussian with q principal components and one variance for everything else (probabilistic
PCA: Tipping and Bishop, JRSS B 61, 1999), which is a covariance shrunk where the slides say nothing about it. With q as
large as the vector it is the plain covariance, and the distance that of Mahalanobis.

Kept are means, components, variances and the distances of the training slides in ascending order. No vector of a slide
can be recovered: there are at least ten patients for each component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.platform.errors import DataError

Floats = NDArray[np.float64]

#: Most components, and patients behind each of them.
MOST_COMPONENTS, PATIENTS_PER_COMPONENT = 32, 10
#: Name of all cohorts together.
EVERYBODY = "all"
#: Fewest slides of a reference, and fewest patients of a cohort with a mean of its own.
FEWEST_SLIDES, FEWEST_PATIENTS = 20, 10
#: Parts of the training slides; the distances of each are measured from the others.
PARTS = 10
#: Variance, of standardised features, of directions in which the training slides do not differ.
_LEAST_VARIANCE = 1e-4
#: Most values kept of a distribution.
_MOST_VALUES = 1000


@dataclass(frozen=True)
class ValueReference:
    """The distribution of one number over the training slides.

    Attributes
    ----------
    values
        ``[n]`` ascending; of more than a thousand, evenly spaced ones with the smallest and the largest.
    """

    values: Floats

    @classmethod
    def of(cls, values: ArrayLike) -> ValueReference:
        """From all values; NaN are left out."""
        known = np.sort(np.asarray(values, float)[~np.isnan(np.asarray(values, float))])
        if len(known) > _MOST_VALUES:
            known = known[np.linspace(0, len(known) - 1, _MOST_VALUES).round().astype(int)]
        return cls(_significant(known))

    def upper_p(self, values: ArrayLike) -> Floats:
        """Share of training slides, with the new one among them, that have at least this value: a conformal p value.

        Uniform on 1 / (n + 1), …, 1 for slides like the training slides (Bates, Candès, Lei, Romano and Sesia, Annals
        of Statistics 51, 2023).
        """
        below = np.searchsorted(self.values, np.asarray(values, float), side="left")
        return (1 + len(self.values) - below) / (len(self.values) + 1)

    def lower_p(self, values: ArrayLike) -> Floats:
        """The same with at most this value."""
        return (1 + np.searchsorted(self.values, np.asarray(values, float), side="right")) / (
            len(self.values) + 1
        )

    def two_sided_p(self, values: ArrayLike) -> Floats:
        """Twice the smaller of both, at most 1."""
        return np.minimum(1, 2 * np.minimum(self.upper_p(values), self.lower_p(values)))

    def percentile(self, values: ArrayLike) -> Floats:
        """Share of the training slides below, half of the equal ones included; 0 to 1."""
        x = np.asarray(values, float)
        both = np.searchsorted(self.values, x, "left") + np.searchsorted(self.values, x, "right")
        return both / (2 * max(len(self.values), 1))


class Centre(NamedTuple):
    """One training cohort, or all of them.

    Attributes
    ----------
    patients
        How many.
    mean
        ``[q]`` mean of the patients in whitened components.
    distances
        Of its slides from the common mean, each from a summary without its patient.
    scale
        How much its patients vary around their mean, 1 as much as those of the other cohorts.
    """

    patients: int
    mean: Floats
    distances: ValueReference
    scale: float = 1.0


@dataclass(frozen=True)
class VectorReference:
    """A Gaussian of vectors, and how far the training slides are from its mean.

    Attributes
    ----------
    centre, scale
        ``[D]`` mean, and the unit of each dimension (its standard deviation, 1 for constant ones).
    components
        ``[q, D]`` orthonormal, of the standardised vectors.
    variances, rest
        ``[q]`` of the components, and of every other direction (infinite if there is none).
    distances
        Of the training slides, each measured from a summary without its patient.
    centres
        Cohort → where its patients are; ``all`` for all of them.
    within, total
        ``[q, q]`` covariances of the patients in whitened components: around the means of their cohorts, and around
        the mean of all.
    """

    centre: Floats
    scale: Floats
    components: Floats
    variances: Floats
    rest: float
    distances: ValueReference
    centres: Mapping[str, Centre]
    within: Floats
    total: Floats

    @classmethod
    def fit(cls, vectors: ArrayLike, patients: Sequence[str], cohorts: Sequence[str]) -> VectorReference:
        """Summarise training slides.

        Parameters
        ----------
        vectors
            ``[N, D]``, one per slide.
        patients, cohorts
            Of the slides. Slides of a patient are left out together.

        Raises
        ------
        DataError
            If there are too few slides, or one is not finite.
        """
        x = np.asarray(vectors, float)
        names, patient_of = np.unique(np.asarray(patients, str), return_inverse=True)
        if len(names) < FEWEST_SLIDES:
            raise DataError(
                f"{len(names)} patients with slides are too few to tell what is unusual; {FEWEST_SLIDES} are needed",
                where="drift reference",
            )
        if not np.isfinite(x).all():
            raise DataError("features of a training slide are not finite", where="drift reference")
        parts = min(PARTS, len(names))
        most = max(1, min(MOST_COMPONENTS, len(names) // PATIENTS_PER_COMPONENT))
        distances = np.empty(len(x))
        for part in range(parts):
            out = patient_of % parts == part
            distances[out] = cls._summary(x[~out], most).distance(x[out])
        summary = cls._summary(x, most)
        of_patient = _means(summary.whitened(x), patient_of, len(names))
        cohort_of_slide = np.asarray(cohorts, str)
        cohort_of = cohort_of_slide[np.unique(patient_of, return_index=True)[1]]
        cohort_names, cohort_index = np.unique(cohort_of, return_inverse=True)
        centred = of_patient - _means(of_patient, cohort_index, len(cohort_names))[cohort_index]
        within = centred.T @ centred / max(len(names) - len(cohort_names), 1)
        known = {
            EVERYBODY: Centre(len(names), _significant(of_patient.mean(axis=0)), ValueReference.of(distances))
        }
        for cohort in cohort_names:
            members = cohort_of == cohort
            if members.sum() >= FEWEST_PATIENTS:
                known[str(cohort)] = Centre(
                    int(members.sum()),
                    _significant(of_patient[members].mean(axis=0)),
                    ValueReference.of(distances[cohort_of_slide == cohort]),
                    _relative_variance(centred[members], within),
                )
        return replace(
            summary,
            distances=ValueReference.of(distances),
            centres=known,
            within=_significant(within),
            total=_significant(np.atleast_2d(np.cov(of_patient.T))),
        )

    @classmethod
    def _summary(cls, x: Floats, most: int) -> VectorReference:
        """Mean and components alone."""
        n, dim = x.shape
        centre, scale = x.mean(axis=0), x.std(axis=0, ddof=1)
        scale = np.where(scale > 1e-9 * (1 + np.abs(centre)), scale, 1.0)
        centred = (x - centre) / scale
        variances, directions = _leading(centred, min(most, n - 1, dim))
        q = max(1, int((variances > 1e-10 * variances[0]).sum()))
        left = float((centred**2).sum() / (n - 1) - variances[:q].sum())
        rest = max(left / (dim - q), _LEAST_VARIANCE) if dim > q else float("inf")
        # Signs of components are free: fixed, so that the same slides give the same file.
        signs = np.sign(directions[np.arange(q), np.abs(directions[:q]).argmax(axis=1)])
        components = _significant(directions[:q] * signs[:, None])
        return cls(
            _significant(centre), _significant(scale), components, _significant(variances[:q]), rest,
            ValueReference(np.empty(0)), {}, np.eye(q), np.eye(q),
        )  # fmt: skip

    @property
    def slides(self) -> int:
        """Training slides whose distances are kept."""
        return len(self.distances.values)

    def whitened(self, vectors: ArrayLike) -> Floats:
        """``[V, q]`` components with mean 0 and variance 1 over the training slides."""
        x = self._standardised(vectors)
        return np.asarray(x @ self.components.T / np.sqrt(self.variances))

    def distance(self, vectors: ArrayLike) -> Floats:
        """``[V]`` distances from the mean in standard deviations.

        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(200, 2))
        >>> reference = VectorReference.fit(x, [str(i) for i in range(200)], ["A"] * 200)
        >>> bool(reference.distance(x[:1])[0] < reference.distance([[9.0, 9.0]])[0])
        True
        """
        x = self._standardised(vectors)
        scores = x @ self.components.T
        squared = (scores**2 / self.variances).sum(axis=1)
        if np.isfinite(self.rest):
            squared += np.maximum((x**2).sum(axis=1) - (scores**2).sum(axis=1), 0) / self.rest
        return np.asarray(np.sqrt(squared))

    def _standardised(self, vectors: ArrayLike) -> Floats:
        x = np.atleast_2d(np.asarray(vectors, float))
        if x.shape[1] != len(self.centre):
            raise DataError(
                f"vectors have {x.shape[1]} numbers, those of the training slides {len(self.centre)}",
                where="drift reference",
                fix="use the encoder that the model was trained with",
            )
        return (x - self.centre) / self.scale

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "centre": self.centre.tolist(),
            "scale": self.scale.tolist(),
            "components": self.components.tolist(),
            "variances": self.variances.tolist(),
            "rest": self.rest if np.isfinite(self.rest) else None,
            "distances": self.distances.values.tolist(),
            "centres": {
                name: {
                    "patients": centre.patients,
                    "mean": centre.mean.tolist(),
                    "distances": centre.distances.values.tolist(),
                    "scale": centre.scale,
                }
                for name, centre in self.centres.items()
            },
            "within": self.within.tolist(),
            "total": self.total.tolist(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> VectorReference:
        """From :meth:`to_dict`; raises DataError if it is something else."""
        try:
            arrays = {
                name: np.asarray(state[name], float)
                for name in ("centre", "scale", "components", "variances", "within", "total")
            }
            rest = float("inf") if state["rest"] is None else float(state["rest"])
            centres = {
                str(name): Centre(
                    int(centre["patients"]),
                    np.asarray(centre["mean"], float),
                    ValueReference(np.asarray(centre["distances"], float)),
                    float(centre["scale"]),
                )
                for name, centre in state["centres"].items()
            }
            distances = ValueReference(np.asarray(state["distances"], float))
        except (KeyError, TypeError, ValueError, AttributeError) as wrong:
            raise DataError(
                f"not the state of a drift reference: {wrong!r}", where="drift reference"
            ) from wrong
        q, dim = len(arrays["variances"]), len(arrays["centre"])
        shapes = {"components": (q, dim), "scale": (dim,), "within": (q, q), "total": (q, q)}
        fits = all(arrays[name].shape == shape for name, shape in shapes.items())
        if not fits or any(centre.mean.shape != (q,) for centre in centres.values()):
            raise DataError("numbers of a drift reference do not fit together", where="drift reference")
        return cls(**arrays, rest=rest, distances=distances, centres=centres)


def _relative_variance(centred: Floats, within: Floats) -> float:
    """Mean variance of a cohort's centred patients ``[P, q]`` in units of the common covariance, 6 digits."""
    own = centred.T @ centred / (len(centred) - 1)
    return float(f"{np.trace(np.linalg.pinv(within) @ own) / len(within):.6g}")


def _leading(centred: Floats, most: int) -> tuple[Floats, Floats]:
    """The largest variances of centred rows, descending, and their directions ``[most, D]``."""
    from scipy.linalg import eigh

    n, dim = centred.shape
    gram = centred @ centred.T if n < dim else centred.T @ centred
    side = len(gram)
    values, vectors = eigh(gram, subset_by_index=(side - most, side - 1))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    if n < dim:  # from directions among slides to directions among features
        vectors = centred.T @ vectors / np.sqrt(np.maximum(values, 1e-300))
    return values / (n - 1), vectors.T


def _means(x: Floats, group: NDArray[np.int64], groups: int) -> Floats:
    """``[groups, D]`` means of the rows of each group."""
    total = np.zeros((groups, x.shape[1]))
    np.add.at(total, group, x)
    return total / np.bincount(group, minlength=groups)[:, None]


def means_by_patient(x: Floats, patients: Sequence[str]) -> Floats:
    """``[P, D]`` means of the slides of each patient, patients in ascending order."""
    names, index = np.unique(np.asarray(patients, str), return_inverse=True)
    return _means(x, index, len(names))


def _significant(values: Floats) -> Floats:
    """Rounded to seven significant digits: what is written to a file is what is used."""
    x = np.asarray(values, float)
    return np.array([float(f"{value:.7g}") for value in x.ravel()]).reshape(x.shape)
