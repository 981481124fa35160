"""Importance of searched parameters: permutation importance of a random forest over the trials.

A forest (Breiman 2001) learns the objective from the parameters and predicts trials that it has not seen; the
importance of a parameter is the loss of R² when its values are replaced by those of other trials.

**Conditional parameters** exist only in some trials. Where one does not apply it gets the value of a randomly drawn
trial, drawn again in every repeat, so that its absence tells the forest nothing about the arm; it is permuted only
among trials that have it, and its loss elsewhere is 0. Shares of loss weights sum to one and are permuted together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from equipoise.platform.search.analysis import PARAM, varied
from equipoise.platform.search.space import LOSS_WEIGHTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

#: Importance needs at least this many trials, and this many per parameter.
MIN_TRIALS, PER_PARAMETER = 20, 3

_TREES, _FOLDS, _REPEATS, _SHUFFLES = 50, 5, 2, 4


@dataclass(frozen=True)
class Importance:
    """Importance of all parameters, or the reason why it cannot be estimated.

    Parameters
    ----------
    table
        Columns ``parameter``, ``importance`` (loss of R²), ``se`` (over repeats and parts), ``trials`` that have it;
        the most important first. Empty if ``reason`` says why.
    r2
        R² of the forest on trials that it has not seen; at 0 or below it has learned nothing.
    trials
        Number of finished trials.
    reason
        Why there is no table.
    """

    table: pd.DataFrame = field(repr=False)
    r2: float
    trials: int
    reason: str = ""


@dataclass(frozen=True)
class _ParameterGroup:
    """Columns that are permuted together, and the trials that have them."""

    name: str
    columns: NDArray[np.intp]
    rows: NDArray[np.intp]


def importance(table: pd.DataFrame, seed: int = 0) -> Importance:
    """Permutation importance of the parameters that differ between finished trials.

    Parameters
    ----------
    table
        ``trials.parquet``.
    seed
        Of forests, parts and permutations.
    """
    done = table[(table["status"] == "ok") & table["objective"].notna()].reset_index(drop=True)
    names = varied(done)
    few = max(MIN_TRIALS, PER_PARAMETER * len({_group_name(name) for name in names}))
    target = done["objective"].to_numpy(float)
    nothing = pd.DataFrame(columns=["parameter", "importance", "se", "trials"])
    if not names:
        return Importance(nothing, np.nan, len(done), "no parameter differs between finished trials")
    if len(done) < few:
        reason = (
            f"{len(done)} finished trials are too few to tell {len(names)} parameters apart; {few} are needed"
        )
        return Importance(nothing, np.nan, len(done), reason)
    if np.ptp(target) == 0:
        return Importance(nothing, np.nan, len(done), "all trials came to the same value")
    losses, spread, r2 = _measure(done, names, target, np.random.default_rng(seed))
    groups = _encoded(done, names, np.random.default_rng(seed))[1]
    result = pd.DataFrame(
        {
            "parameter": [group.name for group in groups],
            "importance": losses,
            "se": spread,
            "trials": [len(group.rows) for group in groups],
        }
    )
    return Importance(result.sort_values("importance", ascending=False, ignore_index=True), r2, len(done))


def _measure(
    done: pd.DataFrame, names: list[str], target: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats, float]:
    """Loss of R² per group with its standard error, and R²; mean over repeats and parts."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    rounds, errors = [], []
    variance = float(target.var())
    for _ in range(_REPEATS):
        inputs, groups = _encoded(done, names, rng)
        parts = KFold(_FOLDS, shuffle=True, random_state=int(rng.integers(2**31)))
        for train, test in parts.split(inputs):
            forest = RandomForestRegressor(
                _TREES, min_samples_leaf=2, random_state=int(rng.integers(2**31)), n_jobs=1
            )
            forest.fit(inputs[train], target[train])
            error = (forest.predict(inputs[test]) - target[test]) ** 2
            changed = np.concatenate([_permuted(inputs, test, group, rng) for group in groups])
            after = forest.predict(changed).reshape(len(groups), _SHUFFLES, len(test))
            grown = (after - target[test]) ** 2 - error
            rounds.append(grown.mean((1, 2)) / variance)
            errors.append(float(error.mean()))
    lost = np.array(rounds)
    return lost.mean(0), lost.std(0, ddof=1) / np.sqrt(len(lost)), 1 - float(np.mean(errors)) / variance


def _permuted(
    inputs: Floats, test: NDArray[np.intp], group: _ParameterGroup, rng: np.random.Generator
) -> Floats:
    """The rows of ``test``, repeated, with values of other trials in the columns of a group."""
    copies = np.tile(inputs[test], (_SHUFFLES, 1))
    has = np.flatnonzero(np.isin(np.tile(test, _SHUFFLES), group.rows))
    donors = rng.choice(group.rows, len(has))
    copies[np.ix_(has, group.columns)] = inputs[np.ix_(donors, group.columns)]
    return copies


def _encoded(
    done: pd.DataFrame, names: list[str], rng: np.random.Generator
) -> tuple[Floats, list[_ParameterGroup]]:
    """Numbers unchanged, text one-hot encoded; missing values are drawn from the known ones of the same group."""
    columns: list[Floats] = []
    groups: list[_ParameterGroup] = []
    for name in dict.fromkeys(_group_name(name) for name in names):
        members = [member for member in names if _group_name(member) == name]
        rows = np.flatnonzero(done[members].notna().all(axis=1))
        source = np.arange(len(done))
        absent = np.setdiff1d(source, rows)
        source[absent] = rng.choice(rows, len(absent))
        filled = done[members].iloc[source].reset_index(drop=True)
        start = len(columns)
        for member in members:
            if pd.api.types.is_numeric_dtype(filled[member]):
                columns.append(filled[member].to_numpy(float))
            else:
                texts = filled[member].astype(str)
                columns += [(texts == text).to_numpy(float) for text in sorted(texts.unique())]
        groups.append(_ParameterGroup(name, np.arange(start, len(columns)), rows))
    return np.column_stack(columns), groups


def _group_name(name: str) -> str:
    """Name of the group that is permuted together: all shares of loss weights, else the parameter itself."""
    plain = name.removeprefix(PARAM)
    return LOSS_WEIGHTS if plain.startswith(f"{LOSS_WEIGHTS}.") else plain
