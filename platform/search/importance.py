"""Which parameters a search found to matter: permutation importance of a random forest over its trials.

A forest (Breiman 2001) learns the objective from the parameters and is asked about trials that it has not seen; the
importance of a parameter is what its R² loses when the values of that parameter are those of other trials.

**Conditional parameters** exist only in some trials. Where one does not apply it gets the value of a trial drawn by
chance, anew in every repeat, so that its absence tells the forest nothing about the arm; it is permuted only among
trials that have it, and loses nothing elsewhere. Shares of loss weights sum to one and are exchanged together.
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

#: Fewer trials than this, or than so many per parameter, say nothing about parameters.
MIN_TRIALS, PER_PARAMETER = 20, 3

_TREES, _FOLDS, _REPEATS, _SHUFFLES = 50, 5, 2, 4


@dataclass(frozen=True)
class Importance:
    """What matters, or why that cannot be said.

    Parameters
    ----------
    table
        Columns ``parameter``, ``importance`` (loss of R²), ``se`` (over repeats and parts), ``trials`` that have it;
        the most important first. Empty if ``reason`` says why.
    r2
        Of the forest on trials it has not seen; at 0 or below it has learned nothing.
    trials
        Finished trials.
    reason
        Why there is no table.
    """

    table: pd.DataFrame = field(repr=False)
    r2: float
    trials: int
    reason: str = ""


@dataclass(frozen=True)
class _Group:
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
    few = max(MIN_TRIALS, PER_PARAMETER * len({_group(name) for name in names}))
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
    made = pd.DataFrame(
        {
            "parameter": [group.name for group in groups],
            "importance": losses,
            "se": spread,
            "trials": [len(group.rows) for group in groups],
        }
    )
    return Importance(made.sort_values("importance", ascending=False, ignore_index=True), r2, len(done))


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


def _permuted(inputs: Floats, test: NDArray[np.intp], group: _Group, rng: np.random.Generator) -> Floats:
    """The rows of ``test`` so many times, with values of other trials in the columns of a group."""
    copies = np.tile(inputs[test], (_SHUFFLES, 1))
    has = np.flatnonzero(np.isin(np.tile(test, _SHUFFLES), group.rows))
    donors = rng.choice(group.rows, len(has))
    copies[np.ix_(has, group.columns)] = inputs[np.ix_(donors, group.columns)]
    return copies


def _encoded(done: pd.DataFrame, names: list[str], rng: np.random.Generator) -> tuple[Floats, list[_Group]]:
    """Numbers as they are, words one column each; missing values drawn from the known ones of the same group."""
    columns: list[Floats] = []
    groups: list[_Group] = []
    for name in dict.fromkeys(_group(name) for name in names):
        own = [member for member in names if _group(member) == name]
        rows = np.flatnonzero(done[own].notna().all(axis=1))
        source = np.arange(len(done))
        absent = np.setdiff1d(source, rows)
        source[absent] = rng.choice(rows, len(absent))
        filled = done[own].iloc[source].reset_index(drop=True)
        start = len(columns)
        for member in own:
            if pd.api.types.is_numeric_dtype(filled[member]):
                columns.append(filled[member].to_numpy(float))
            else:
                words = filled[member].astype(str)
                columns += [(words == word).to_numpy(float) for word in sorted(words.unique())]
        groups.append(_Group(name, np.arange(start, len(columns)), rows))
    return np.column_stack(columns), groups


def _group(name: str) -> str:
    """What is permuted together: all shares of loss weights, else the parameter itself."""
    plain = name.removeprefix(PARAM)
    return LOSS_WEIGHTS if plain.startswith(f"{LOSS_WEIGHTS}.") else plain
