"""Which trial wins, by inner validation alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from equipoise.platform.registry import entries
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.space import SLOTS
from equipoise.platform.search.trials import Trial


def choose(trials: Sequence[Trial], params: SearchParams) -> Trial:
    """The winner among trials that ran all their folds.

    ``best``: highest mean of the metric over folds; the first of equals. ``one_standard_error`` (Breiman et al. 1984):
    the simplest trial whose mean is not more than one standard error of the best one's mean below it. Simpler is who
    has fewer parameters; then the cheaper aggregator, weighting and strategy of a federation, in the order in which the
    registries list them; then the better mean. Seeds are no further draws of patients and do not shrink the error.

    Raises
    ------
    ValueError
        If no trial ran all its folds.
    """
    done = [trial for trial in trials if trial.ok]
    if not done:
        raise ValueError("no trial ran all its folds")
    best = max(done, key=lambda trial: (trial.objective, -trial.index))
    if params.select == "best" or isnan(best.objective_se):
        return best
    near = [trial for trial in done if trial.objective >= best.objective - best.objective_se]
    return min(near, key=lambda trial: (*simplicity(trial), -trial.objective, trial.index))


def simplicity(trial: Trial) -> tuple[int, ...]:
    """Parameters of the model, then places of aggregator, weighting and strategy in their registries; smaller is
    simpler."""
    chosen = (("aggregators", "aggregation"), ("weightings", "weighting"), ("strategies", "strategy"))
    places = (
        list(entries(registry)).index(str(trial.config[SLOTS[slot]])) if SLOTS[slot] in trial.config else 0
        for registry, slot in chosen
    )
    return (trial.parameters, *places)
