"""Searchers choose the next configuration. Random and grid search are functions of (seed, index); Optuna learns.

Nothing here keeps state on disk: a resumed search reads the records of finished trials and tells them again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from equipoise.platform.evaluation.metrics import normalised
from equipoise.platform.search.params import SCORES, SearchParams
from equipoise.platform.search.space import LOSS_WEIGHTS, SLOTS, Config, Dimension, Space
from equipoise.platform.search.trial_records import Trial, Value

if TYPE_CHECKING:
    import optuna

    from equipoise.datasets.tables.tasks import Task

#: Streams of random draws of a search, beside those of its folds.
DRAW, ORDER = 0, 1


class Searcher(Protocol):
    """Gives configurations by index and is told the results of trials."""

    def ask(self, index: int) -> Config:
        """The configuration of a trial, from index 1; index 0 is the study as written."""
        ...

    def tell(self, trial: Trial) -> None:
        """A trial has ended, in this session or an earlier one."""
        ...


def build_searcher(
    space: Space, params: SearchParams, tasks: Sequence[Task], seed: int, told: int = 0
) -> tuple[Searcher, int]:
    """The searcher of a study, and how many trials it can give (the study as written included).

    Parameters
    ----------
    seed
        Seed of the search.
    told
        Trials that had ended when this session started: an estimator then continues with other random numbers.
    """
    if params.searcher == "grid":
        grid = GridSearch(space, params.levels, seed)
        return grid, min(params.trials, grid.size + 1)
    if params.searcher == "random":
        return RandomSearch(space, seed), params.trials
    return OptunaSearch(space, params, tasks, seed, told), params.trials


class RandomSearch:
    """Independent draws: entry by entry, then uniformly in every range and on the simplex."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.seed = seed

    def ask(self, index: int) -> Config:
        """A function of seed and index alone."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, DRAW], spawn_key=(index,)))
        return self.space.draw(RandomSource(rng))

    def tell(self, trial: Trial) -> None:
        """Random search does not learn."""


class RandomSource:
    """A :class:`~equipoise.platform.search.space.Source` that draws from a random generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def choose(self, name: str, options: Sequence[str]) -> str:
        """Every entry has the same probability."""
        return options[int(self.rng.integers(len(options)))]

    def value(self, dimension: Dimension) -> Value:
        """Uniform, in orders of magnitude where the dimension says so."""
        if dimension.choices:
            return dimension.choices[int(self.rng.integers(len(dimension.choices)))]
        return dimension.value_at(float(self.rng.random()))

    def shares(self, tasks: Sequence[str]) -> Sequence[float]:
        """Dirichlet(1, …, 1): uniform on the simplex."""
        return [float(share) for share in self.rng.dirichlet(np.ones(len(tasks)))]


class GridSearch:
    """All points of the grid, each once, with a step coprime to its size, so that a few trials cover it evenly."""

    def __init__(self, space: Space, levels: int, seed: int) -> None:
        self.space = space
        self.levels = levels
        self.size = space.grid_size(levels)
        rng = np.random.default_rng(np.random.SeedSequence([seed, ORDER]))
        self.start = int(rng.integers(self.size))
        self.step = _coprime(self.size, int(rng.integers(self.size)) if self.size > 2 else 1)

    def ask(self, index: int) -> Config:
        """A function of seed and index alone."""
        return self.space.grid_point((self.start + (index - 1) * self.step) % self.size, self.levels)

    def tell(self, trial: Trial) -> None:
        """Grid search does not learn."""


def _coprime(size: int, near: int) -> int:
    """The first number from ``near`` on that is coprime to ``size``, so that its multiples visit every index."""
    while math.gcd(near, size) != 1:
        near += 1
    return near


class OptunaSearch:
    """Tree-structured Parzen estimator (Bergstra 2011; multivariate, one model per group of dimensions that occur
    together) or NSGA-II (Deb 2002) over the first metric of every task.

    A point of the simplex is K - 1 numbers between 0 and 1 by stick-breaking that keeps the density uniform: with v_k
    = 1 - (1 - u_k)^(1 / (K - k)) and uniform u_k, shares s_k = v_k Π_{j<k} (1 - v_j) are Dirichlet(1, …, 1).
    """

    def __init__(
        self, space: Space, params: SearchParams, tasks: Sequence[Task], seed: int, told: int = 0
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.metrics = (
            [f"val/{task.name}/{SCORES[task.type][0]}" for task in tasks]
            if params.searcher == "nsga2"
            else [params.metric]
        )
        number = int(np.random.SeedSequence([seed, DRAW, told]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler: Any
            if params.searcher == "nsga2":
                sampler = optuna.samplers.NSGAIISampler(
                    population_size=max(4, min(50, params.trials // 4)), seed=number
                )
            else:
                startup = max(4, min(10, params.trials // 4))
                sampler = optuna.samplers.TPESampler(
                    multivariate=True, group=True, constant_liar=True, n_startup_trials=startup, seed=number
                )
        self.study = optuna.create_study(directions=["maximize"] * len(self.metrics), sampler=sampler)
        self._open: dict[int, optuna.Trial] = {}

    def ask(self, index: int) -> Config:
        """The suggestion of the estimator, which takes running trials into account."""
        trial = self.study.ask()
        self._open[index] = trial
        return self.space.draw(OptunaSource(trial))

    def tell(self, trial: Trial) -> None:
        """A pruned trial counts with the value that it had reached, a failed one as a failure."""
        import optuna

        states = optuna.trial.TrialState
        values = [normalised(metric, trial.means.get(metric, math.nan)) for metric in self.metrics]
        known = all(math.isfinite(value) for value in values)
        state = states.COMPLETE if trial.ok and known else states.FAIL
        if trial.status == "pruned" and known and len(values) == 1:
            state = states.PRUNED
        if (asked := self._open.pop(trial.index, None)) is not None:
            if state is states.PRUNED:
                asked.report(values[0], len(trial.folds))
            self.study.tell(asked, values if state is states.COMPLETE else None, state=state)
            return
        recorded = Replay(trial.config)
        try:
            inside = self.space.draw(recorded) == trial.config
        except KeyError:
            inside = False
        if not inside:
            return  # the study as written may lie outside its own narrowed space
        self.study.add_trial(
            optuna.trial.create_trial(
                params=recorded.params,
                distributions=recorded.distributions,
                values=None if state is states.FAIL else values,
                state=state,
                intermediate_values={len(trial.folds): values[0]} if state is states.PRUNED else None,
            )
        )


class OptunaSource:
    """A :class:`~equipoise.platform.search.space.Source` that asks an open trial of Optuna."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def choose(self, name: str, options: Sequence[str]) -> str:
        """One of the entries."""
        return str(self.trial.suggest_categorical(name, list(options)))

    def value(self, dimension: Dimension) -> Value:
        """One of the values, or a number of the range."""
        name, low, high, log = dimension.name, dimension.low, dimension.high, dimension.log
        if dimension.choices:
            result: Value = self.trial.suggest_categorical(name, list(dimension.choices))
            return result
        if dimension.whole:
            return self.trial.suggest_int(name, round(low), round(high), log=log)
        return self.trial.suggest_float(name, low, high, log=log)

    def shares(self, tasks: Sequence[str]) -> Sequence[float]:
        """Shares by stick-breaking."""
        cuts = [self.trial.suggest_float(f"{LOSS_WEIGHTS}#{k}", 0.0, 1.0) for k in range(len(tasks) - 1)]
        return stick_breaking(cuts)


class Replay:
    """Replays a recorded configuration through the space and collects the parameters for Optuna.

    Raises KeyError where the record leaves the space.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, Any] = {}

    def choose(self, name: str, options: Sequence[str]) -> str:
        """The entry of the record."""
        import optuna

        slot = name.partition(" ")[0]
        chosen = self.config[SLOTS[slot]]
        if chosen not in options:
            raise KeyError(name)
        self.params[name] = chosen
        self.distributions[name] = optuna.distributions.CategoricalDistribution(list(options))
        return str(chosen)

    def value(self, dimension: Dimension) -> Value:
        """The value of the record."""
        value = self.config[dimension.name]
        if not _contains(dimension, value):
            raise KeyError(dimension.name)
        self.params[dimension.name], self.distributions[dimension.name] = (
            value,
            optuna_distribution(dimension),
        )
        return value

    def shares(self, tasks: Sequence[str]) -> Sequence[float]:
        """The shares of the record."""
        import optuna

        shares = [float(self.config[f"{LOSS_WEIGHTS}.{task}"]) for task in tasks]  # type: ignore[arg-type]
        for k, cut in enumerate(stick_breaking_inverse(shares)):
            self.params[f"{LOSS_WEIGHTS}#{k}"] = cut
            self.distributions[f"{LOSS_WEIGHTS}#{k}"] = optuna.distributions.FloatDistribution(0.0, 1.0)
        return shares


def _contains(dimension: Dimension, value: Value) -> bool:
    if dimension.choices:
        return value in dimension.choices
    return isinstance(value, int | float) and dimension.low <= value <= dimension.high


def optuna_distribution(dimension: Dimension) -> Any:
    """Optuna's distribution of a dimension."""
    import optuna

    if dimension.choices:
        return optuna.distributions.CategoricalDistribution(list(dimension.choices))
    if dimension.whole:
        return optuna.distributions.IntDistribution(
            round(dimension.low), round(dimension.high), log=dimension.log
        )
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def stick_breaking(cuts: Sequence[float]) -> list[float]:
    """K shares that sum to one, from K - 1 uniform numbers; uniform on the simplex."""
    left, shares = 1.0, []
    for k, cut in enumerate(cuts):
        share = left * (1 - (1 - cut) ** (1 / (len(cuts) - k)))
        shares.append(share)
        left -= share
    return [*shares, max(left, 0.0)]


def stick_breaking_inverse(shares: Sequence[float]) -> list[float]:
    """The inverse of :func:`stick_breaking`."""
    left, cuts = 1.0, []
    for k, share in enumerate(shares[:-1]):
        part = min(max(share / left, 0.0), 1.0) if left > 0 else 0.0
        cuts.append(1 - (1 - part) ** (len(shares) - 1 - k))
        left -= share
    return cuts
