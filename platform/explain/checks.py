r"""Whether a map means something: four checks, each with the rule under which it passes.

* **Deletion** (Samek et al. 2017, arXiv 1509.06321). Without the tiles that scored highest the output falls faster than
  without tiles taken at random. The statistic is the area between the two curves; under the null hypothesis that scores
  say nothing, the order by score is one of the random orders, so that its rank among them is a permutation test.
* **Randomisation** (Adebayo et al. 2018, arXiv 1810.03292). A map that is the same for a model with random weights does
  not show what was learned. The statistic is the rank correlation of the map with those of re-initialised models.
* **Agreement** over the models of the folds: their mean rank correlation.
* **Completeness** of methods that promise it: scores sum to the difference from the baseline.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from equipoise.models.seeds import torch_seed
from equipoise.platform.errors import StudyError
from equipoise.platform.explain.attribution import CaseScores, Method
from equipoise.platform.explain.explained import Explained
from equipoise.platform.explain.tile_scores import MapCheck
from equipoise.platform.training.build import seeded

#: Fewest tiles of a case for a check of the order of tiles.
FEWEST_TILES = 5
#: Level of the permutation test of the deletion curve.
LEVEL = 0.05
#: Largest mean rank correlation with re-initialised models, in size, with which a map passes.
MOST_RANDOM = 0.5
#: Smallest mean rank correlation between folds with which a map passes.
LEAST_AGREEMENT = 0.3
#: Largest error of completeness with which a map passes, relative to the sum of the sizes of scores.
MOST_RESIDUAL = 0.05


@dataclass(frozen=True)
class DeletionCurves:
    """Outputs of a case from which more and more tiles were removed.

    Attributes
    ----------
    fractions
        ``[Q]`` shares of the tiles that were removed.
    ordered
        ``[Q]`` change of the output, highest scores first; a fall is positive. The size of the change where the sign of
        scores means nothing.
    random
        ``[R, Q]`` the same in random orders.
    """

    fractions: NDArray[np.float64]
    ordered: NDArray[np.float64]
    random: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Mean distance between the curve and the mean of the random ones."""
        return float((self.ordered - self.random.mean(axis=0)).mean())

    @property
    def null(self) -> NDArray[np.float64]:
        """``[R]`` the areas of the random orders."""
        return np.asarray((self.random - self.random.mean(axis=0)).mean(axis=1))


def deletion_curves(
    scores: CaseScores, *, seed: int, orders: int = 99, most_tiles: int = 256
) -> DeletionCurves:
    """Remove a tenth, a quarter, half and three quarters of the tiles of a case.

    Parameters
    ----------
    scores
        The scores and the models that are asked; the output is the mean of theirs.
    seed
        Of the study. Random orders depend on it and on the patient.
    orders
        Random orders R.
    most_tiles
        Of a larger case so many tiles are drawn at random, and are the whole case here.
    """
    rng = np.random.default_rng([seed, _number(scores.case.patient)])
    count = len(scores.mean)
    kept_M = np.sort(rng.permutation(count)[:most_tiles])
    score_M = scores.mean[kept_M]
    fractions = np.array([0.1, 0.25, 0.5, 0.75])
    m = len(kept_M)
    removed_Q = np.unique(np.clip(np.round(fractions * m), 1, m - 1).astype(int))
    # Ties are broken at random: a map of equal scores has no order of its own.
    first = np.lexsort((rng.permutation(m), -score_M))
    order_RM = np.stack([first, *(rng.permutation(m) for _ in range(orders))])
    whole = _mean_values(scores.explained, kept_M[None])[0]
    values_RQ = np.stack(
        [_mean_values(scores.explained, kept_M[np.sort(order_RM[:, q:], axis=1)]) for q in removed_Q], 1
    )
    change_RQ = whole - values_RQ
    if not scores.method.signed:
        change_RQ = np.abs(change_RQ)
    return DeletionCurves(removed_Q / m, change_RQ[0], change_RQ[1:])


def _mean_values(models: Sequence[Explained], rows_SM: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[S]`` the mean output of the models for these tiles of the case."""
    rows = torch.from_numpy(rows_SM)
    return np.mean([model.values_of_tiles(rows).double().cpu().numpy() for model in models], axis=0)


def deletion_check(curves: DeletionCurves) -> MapCheck:
    """Pass if the area is among the largest 5 % of the random orders."""
    null, area = curves.null, curves.area
    p = (1 + int((null >= area - 1e-12 * max(abs(area), 1e-300)).sum())) / (1 + len(null))
    low, high = (float(q) for q in np.quantile(null, [0.025, 0.975]))
    passed = p <= LEVEL
    found = (
        "removing the highest scores first moves the output more"
        if passed
        else "the order of scores moves the output no more"
    )
    reason = f"{found} than random orders do (area {area:.3g}, p = {p:.2g}, passes at {LEVEL:g} or below)"
    return MapCheck("deletion", area, low, high, passed, reason)


def reinitialised(model: nn.Module, seed: int) -> nn.Module:
    """A copy with random weights in place of those that were learned.

    Modules that know how to initialise themselves do; other parameters are drawn from a normal distribution of their
    own root mean square. Buffers (standardisation of the inputs) and frozen parts that were never learned stay.
    """
    fresh = copy.deepcopy(model)
    with seeded(seed, torch.device("cpu")), torch.no_grad():
        for part in fresh.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for parameter in part.parameters(recurse=False):
                size = float(parameter.double().square().mean().sqrt())
                drawn = torch.randn(parameter.shape, dtype=torch.float64) * size
                parameter.copy_(drawn.to(parameter))
    return fresh


def randomisation_check(scores: CaseScores, *, seed: int, models: int = 10) -> MapCheck:
    """Pass if maps of re-initialised models have a rank correlation with this one whose size is small on average.

    Parameters
    ----------
    scores
        The map; of several models the first is re-initialised.
    seed
        Of the study.
    models
        Re-initialised models.
    """
    one = scores.explained[0]
    own = scores.each[0]
    found = []
    for number in range(models):
        other = replace(one, model=reinitialised(one.model, torch_seed(seed, number)))
        found.append(rank_correlation(own, scores.method.attribution.scores(other).double().cpu().numpy()))
    sizes = np.abs(found)
    value = float(sizes.mean())
    low, high = float(sizes.min()), float(sizes.max())
    passed = value <= MOST_RANDOM
    about = "the map changes with the weights" if passed else "an untrained model gives much the same map"
    reason = (
        f"{about}: rank correlation {value:.2f} in size with {models} re-initialised models, "
        f"passes up to {MOST_RANDOM:g}"
    )
    return MapCheck("randomisation", value, low, high, passed, reason)


def agreement_check(each_FN: NDArray[np.float64], learned_from: int = 0) -> MapCheck:
    """Pass if the maps of the folds' models rank tiles in a similar order.

    Parameters
    ----------
    each_FN
        Scores of the same tiles by the model of each fold, two or more.
    learned_from
        How many of these models have learned from the patient.
    """
    pairs = [rank_correlation(a, b) for a, b in itertools.combinations(each_FN, 2)]
    if not pairs:
        raise StudyError("agreement of maps needs the models of two folds")
    value = float(np.mean(pairs))
    passed = value >= LEAST_AGREEMENT
    about = "rank tiles in a similar order" if passed else "do not rank tiles in a similar order"
    reason = (
        f"models of {len(each_FN)} folds {about}: rank correlation {value:.2f}, passes from {LEAST_AGREEMENT:g}"
        + (f"; {learned_from} of them learned from this patient" if learned_from else "")
    )
    return MapCheck("agreement", value, float(np.min(pairs)), float(np.max(pairs)), passed, reason)


def completeness_check(scores: CaseScores) -> MapCheck | None:
    """Pass if scores sum to the difference from the baseline; None for a method that does not promise it."""
    method: Method = scores.method
    if not method.complete:
        return None
    wanted = float(np.mean([method.attribution.difference(each) for each in scores.explained]))  # type: ignore[attr-defined]
    size = max(float(np.abs(scores.mean).sum()), abs(wanted))
    residual = (float(scores.mean.sum()) - wanted) / size if size else 0.0
    passed = abs(residual) <= MOST_RESIDUAL
    about = (
        "scores sum to the change of the output"
        if passed
        else "scores do not sum to the change of the output"
    )
    reason = f"{about}: {residual:+.1%} of their sizes are left over, passes up to {MOST_RESIDUAL:.0%}"
    return MapCheck("completeness", residual, -MOST_RESIDUAL, MOST_RESIDUAL, passed, reason)


def too_few_tiles(name: str, count: int) -> MapCheck:
    """What stands in place of a check of a case with hardly any tile: it has failed, because nothing is known."""
    reason = f"the case has {count} tiles, and a check of their order needs {FEWEST_TILES}"
    return MapCheck(name, math.nan, math.nan, math.nan, False, reason)


def rank_correlation(a_N: NDArray[np.float64], b_N: NDArray[np.float64]) -> float:
    """Spearman's rank correlation; 0 where one of the two is constant and ranks nothing."""
    from scipy.stats import rankdata

    ranks = [rankdata(part) - (len(part) + 1) / 2 for part in (a_N, b_N)]
    norm = math.sqrt(float(ranks[0] @ ranks[0]) * float(ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1]) / norm if norm else 0.0


def _number(patient: str) -> int:
    return int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=8).digest(), "big")
