r"""Whether embeddings of patients are near by class or by the place they come from.

Of a patient's k nearest others, by cosine distance, those of the same class from another centre (SO) speak for
biology, those of another class from the same centre (OS) for the centre. The **robustness index** of Kömen et al.
(PathoROB, arXiv 2507.17845) is the share of the former over all patients,

.. math:: RI_k = \frac{\sum_i SO_i}{\sum_i SO_i + OS_i},

and the **margin** of Grisi et al. (CRoMa, arXiv 2607.25497) the median over patients of
:math:`(d_{OS} - d_{SO}) / (d_{OS} + d_{SO})` with the mean distances to the nearest five of either kind: above 0
patients of the class from elsewhere are nearer.

Embeddings of different folds live in different spaces: both are computed among the patients that a fold's model did not
train on, and averaged over folds. **The index of neighbours drawn at random is not ½**: it depends on how many classes
and centres there are, and stands beside the value. k is the candidate with the best balanced accuracy of a vote of the
neighbours on the class, as published.

The interval is that of a jackknife which leaves one patient out everywhere, as one who is scored and as a neighbour. It
is wide: in simulations of 150 patients its standard error is 1.3 times the spread of the index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from equipoise.platform.evaluation.csv_tables import read_table, write_rows
from equipoise.platform.evaluation.intervals import LOGIT
from equipoise.platform.evaluation.predictions import kind_of
from equipoise.platform.evaluation.silhouette import distances

Floats = NDArray[np.float64]

#: Numbers of neighbours among which one is chosen.
NEIGHBOURS = (5, 11, 21)
#: Neighbours of each kind behind the margin.
NEAREST = 5
#: ``centre`` is what the patients' places are: their cohorts or their sites.
ROBUSTNESS_COLUMNS = (
    "task", "centre", "k", "value", "low", "high", "chance", "margin", "support", "n", "folds", "note",
)  # fmt: skip
_NUMBERS = ("k", "value", "low", "high", "chance", "margin", "support", "n", "folds")


@dataclass(frozen=True)
class Neighbourhood:
    """Patients in one space, each with all others in the order of their distance.

    Parameters
    ----------
    patient
        ``[N]`` names.
    label, centre
        ``[N]`` class and place.
    order
        ``[N, N - 1]`` positions of the others, nearest first.
    distance
        ``[N, N]`` cosine distances.
    """

    patient: NDArray[np.str_]
    label: NDArray[np.int64]
    centre: NDArray[np.int64]
    order: NDArray[np.int64]
    distance: Floats

    @classmethod
    def of(
        cls, patient: ArrayLike, latent: ArrayLike, label: ArrayLike, centre: ArrayLike
    ) -> "Neighbourhood":
        """Of ``[N, D]`` embeddings."""
        d_NN = distances(latent, "cosine")
        to_others = d_NN.copy()
        np.fill_diagonal(to_others, np.inf)
        order = np.argsort(to_others, axis=1, kind="stable")[:, :-1]
        labels, centres = (
            np.unique(np.asarray(part), return_inverse=True)[1].astype(np.int64) for part in (label, centre)
        )
        return cls(np.asarray(patient, str), labels, centres, order, d_NN)

    @property
    def same_elsewhere(self) -> NDArray[np.bool_]:
        """``[N, N]`` same class, other centre."""
        return (self.label[:, None] == self.label) & (self.centre[:, None] != self.centre)

    @property
    def other_here(self) -> NDArray[np.bool_]:
        """``[N, N]`` other class, same centre."""
        return (self.label[:, None] != self.label) & (self.centre[:, None] == self.centre)


@dataclass(frozen=True)
class Index:
    """Robustness index of one space.

    Parameters
    ----------
    value, chance
        The index, and that of neighbours drawn at random; NaN without a pair of either kind.
    without
        ``[N]`` the index without each patient.
    support
        Share of patients with a neighbour of either kind.
    """

    value: float
    chance: float
    without: Floats
    support: float


def robustness_index(near: Neighbourhood, k: int) -> Index:
    """The index of the k nearest neighbours, k below the number of patients."""
    same, other = near.same_elsewhere.astype(float), near.other_here.astype(float)
    rows = np.arange(len(near.label))[:, None]
    nearest, following = near.order[:, :k], near.order[:, k : k + 1]
    counts = []
    for pairs in (same, other):
        of_neighbours = pairs[rows, nearest]
        total, left = of_neighbours.sum(), of_neighbours.sum(axis=1)
        # Without patient j, whoever has j among the k nearest gets the following one in its place.
        gained = np.zeros(len(rows))
        next_one = pairs[rows, following] if following.size else np.zeros_like(rows, float)
        np.add.at(gained, nearest, next_one - of_neighbours)
        counts.append((total, total - left + gained, left))
    (so, so_without, so_each), (os, os_without, os_each) = counts
    every_so, every_os = same.sum(), other.sum()
    return Index(
        float(_share(so, os)),
        float(_share(every_so, every_os)),
        _share(so_without, os_without),
        float(((so_each + os_each) > 0).mean()),
    )


def margins(near: Neighbourhood, nearest: int = NEAREST) -> Floats:
    """``[N]`` margin of every patient; NaN for one with fewer neighbours of either kind, or all at distance 0."""
    means = []
    for pairs in (near.same_elsewhere, near.other_here):
        d_NN = np.sort(np.where(pairs, near.distance, np.inf), axis=1)[:, :nearest]
        means.append(d_NN.mean(axis=1) if d_NN.shape[1] == nearest else np.full(len(d_NN), np.inf))
    so, os = means
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isfinite(so) & np.isfinite(os), (os - so) / (os + so), np.nan)


def vote_accuracy(near: Neighbourhood, k: int) -> float:
    """Balanced accuracy of the class that most of the k nearest have; the first of equal ones."""
    votes = np.eye(near.label.max() + 1)[near.label][near.order[:, :k]].sum(axis=1)
    hit = votes.argmax(axis=1) == near.label
    return float(np.mean([hit[near.label == name].mean() for name in np.unique(near.label)]))


def robustness(predictions: pd.DataFrame, latents: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The index of every classification task, with cohorts and with sites as centres; columns ``ROBUSTNESS_COLUMNS``.

    Parameters
    ----------
    predictions
        The predictions table: labels, cohorts and sites of patients.
    latents
        The latents table of the same folds; its test and external patients are used.
    confidence
        Level of the interval.

    Returns
    -------
    No row for a task whose patients are of one cohort or site, or a model without latents.
    """
    rows = []
    for task, of_task in predictions.groupby("task", sort=True):
        if kind_of(of_task) not in ("binary", "multiclass"):
            continue
        people = labelled_people(of_task)
        vectors = latents[(latents["task"] == task) & latents["role"].isin(["test", "external"])]
        vectors = vectors[vectors["patient"].isin(people.index)]
        for centre in _centres(people.loc[vectors["patient"].unique()]):
            rows.append({"task": task, "centre": centre, **_averaged(vectors, people, centre, confidence)})
    table = pd.DataFrame(rows, columns=list(ROBUSTNESS_COLUMNS))
    return table.astype(dict.fromkeys(_NUMBERS, float))


def write_robustness(table: pd.DataFrame, folder: Path) -> None:
    """Write ``robustness.csv`` below ``folder``; an earlier one goes where the table has no row."""
    write_rows(table, folder / "robustness.csv")


def read_robustness(path: Path) -> pd.DataFrame:
    """Read ``robustness.csv``; raises DataError if columns are missing."""
    texts = [name for name in ROBUSTNESS_COLUMNS if name not in _NUMBERS]
    return read_table(path, "robustness", ROBUSTNESS_COLUMNS, texts).astype(dict.fromkeys(_NUMBERS, float))


def _share(so: ArrayLike, os: ArrayLike) -> Floats:
    so, os = np.asarray(so, float), np.asarray(os, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(so + os > 0, so / (so + os), np.nan)


def labelled_people(rows: pd.DataFrame) -> pd.DataFrame:
    """Labelled patients of a task, index patient: columns cohort, site and label (the number of the class)."""
    known = rows[rows["target"].notna()].drop_duplicates(["patient", "class"])
    labels = known.pivot(index="patient", columns="class", values="target")
    number = labels.to_numpy().argmax(axis=1) if labels.shape[1] > 1 else labels.iloc[:, 0].to_numpy()
    places = known.drop_duplicates("patient").set_index("patient")[["cohort", "site"]]
    return places.reindex(labels.index).assign(label=number.astype(int))


def _centres(people: pd.DataFrame) -> list[str]:
    """What can be compared: several cohorts, and sites if they are something else."""
    counts = {name: people[name].nunique() for name in ("cohort", "site")}
    chosen = ["cohort"] if counts["cohort"] > 1 else []
    return [*chosen, "site"] if counts["site"] > max(1, counts["cohort"]) else chosen


def _averaged(
    vectors: pd.DataFrame, people: pd.DataFrame, centre: str, confidence: float
) -> dict[str, object]:
    """Mean over folds, with the jackknife over all patients."""
    spaces = []
    for _, rows in vectors.groupby(["repeat", "fold"], sort=True):
        who = people.loc[rows["patient"]]
        latent = np.stack(rows["latent"].to_list()).astype(float)
        spaces.append(Neighbourhood.of(rows["patient"].to_numpy(str), latent, who["label"], who[centre]))
    smallest = min(len(space.label) for space in spaces)
    candidates = [k for k in NEIGHBOURS if k < smallest]
    nothing = dict.fromkeys(_NUMBERS, float("nan")) | {
        "n": vectors["patient"].nunique(),
        "folds": len(spaces),
    }
    if not candidates:
        return nothing | {"note": f"{smallest} patients in a fold; {NEIGHBOURS[0] + 1} are needed"}
    k = max(candidates, key=lambda k: (np.mean([vote_accuracy(space, k) for space in spaces]), -k))
    found = [robustness_index(space, k) for space in spaces]
    value = float(np.mean([one.value for one in found]))
    if not np.isfinite(value):
        return nothing | {"k": k, "note": "no neighbours of the kinds that are compared in some fold"}
    low, high, note = _interval(found, spaces, value, confidence)
    margin = np.concatenate([margins(space) for space in spaces])
    return {
        "k": k, "value": value, "low": low, "high": high,
        "chance": float(np.mean([one.chance for one in found])),
        "margin": float(np.nanmedian(margin)) if np.isfinite(margin).any() else float("nan"),
        "support": float(np.mean([one.support for one in found])),
        "n": nothing["n"], "folds": len(spaces), "note": note,
    }  # fmt: skip


def _interval(
    found: Sequence[Index], spaces: Sequence[Neighbourhood], value: float, confidence: float
) -> tuple[float, float, str]:
    """Bounds on the logit scale from the mean over folds without each patient."""
    names = np.unique(np.concatenate([space.patient for space in spaces]))
    change = np.zeros(len(names))
    for one, space in zip(found, spaces, strict=True):
        change[np.searchsorted(names, space.patient)] += (one.without - one.value) / len(found)
    if not np.isfinite(change).all() or not 0 < value < 1:
        return float("nan"), float("nan"), "interval not estimable"
    n = len(names)
    variance = (n - 1) / n * float(((change - change.mean()) ** 2).sum())
    half = float(ndtri((1 + confidence) / 2)) * LOGIT.slope(value) * variance**0.5
    centre = LOGIT.forward(value)
    return LOGIT.inverse(centre - half), LOGIT.inverse(centre + half), ""
