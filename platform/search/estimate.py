"""Dry run of a search: its space and its cost, measured on one short trial; writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.platform.errors import DataError
from equipoise.platform.search.context import SearchContext
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.search import prepare
from equipoise.platform.search.space import Config, Space
from equipoise.platform.search.space_builder import build_space
from equipoise.platform.search.trial_records import FoldScore

if TYPE_CHECKING:
    from equipoise.platform.study.schema import Study
    from equipoise.platform.training.inputs import StudyInputs


def describe_search(study: Study, read: Callable[[], StudyInputs]) -> str:
    """Space, size, patients and cost as text.

    Parameters
    ----------
    read
        Reads patients and tiles; the cost is not known where it raises a DataError.
    """
    params = study.search or SearchParams()
    space = build_space(study, params)
    size = space.size()
    lines = ["space:", space.table()]
    if size is None:
        grid = f"; as a grid of {params.levels} values a range {space.grid_size(params.levels):,}"
        lines.append(f"size: continuous{grid}")
    else:
        lines.append(f"size: {size:,} configurations")
    lines.append(f"search: {params.trials} trials, searcher {params.searcher}, scheduler {params.scheduler}")
    lines.append(f"metric: {params.metric} (inner validation), chosen by {params.select}")
    try:
        search_context = prepare(study, read())
        score = short_trial(search_context)
    except DataError as error:
        return "\n".join([*lines, f"cost: not known yet: {error.what}"])
    folds = len(search_context.inputs.folds) // params.seeds
    lines.append(
        f"patients: {len(search_context.searched)} searched on in {folds} folds, "
        f"{len(search_context.held_out)} held out"
    )
    if search_context.inputs.clients:
        clients = search_context.inputs.clients
        sizes = ", ".join(f"{client.name} ({len(client.patients)})" for client in clients)
        lines.append(f"federation: every trial trains across {len(clients)} clients: {sizes}")
    return "\n".join([*lines, cost_text(score, search_context, folds)])


def short_trial(search_context: SearchContext) -> FoldScore:
    """Two epochs, or rounds, of the study as written on the first inner fold, in this process."""
    from equipoise.platform.search.configuration import study_from_config
    from equipoise.platform.search.trial import score_fold

    brief: Config = {"training.epochs": 2, "training.min_epochs": 1}
    if search_context.study.federation is not None:
        brief = {"federation.rounds": 2}
    study = study_from_config(search_context.inputs.settings, brief)
    with tempfile.TemporaryDirectory() as folder:
        return score_fold(search_context.inputs.folds[0], study, search_context.inputs, Path(folder))


def cost_text(score: FoldScore, search_context: SearchContext, folds: int) -> str:
    """Upper bound of the cost of a search, if no trial stops early: a line of text.

    Parameters
    ----------
    score
        Score of the :func:`short_trial`.
    folds
        Number of inner folds; each is trained with every seed.
    """
    study, trials, seeds = search_context.study, search_context.params.trials, search_context.params.seeds
    pooled = study.federation is None
    unit = "epochs" if pooled else "rounds"
    key, written = "training.epochs", study.training.epochs
    if study.federation is not None:
        resolved = study.federation.in_training(study.training)
        key, written = "federation.rounds", resolved.rounds or study.training.epochs
    length = longest_training(search_context.space, key, written)
    one = score.cpu_seconds / max(score.epochs, 1)
    hours = trials * folds * seeds * length * one / 3600
    repeated = f" x {seeds} seeds" if seeds > 1 else ""
    others = (
        "early stopping makes it less, other models and methods" if pooled else "other methods and strategies"
    )
    return (
        f"cost: at most {hours:.2f} CPU hours: {trials} trials x {folds} folds{repeated} x {length} {unit} x "
        f"{one:.2f} CPU s, measured on two {unit} of the study as written; {others} make it more"
    )


def longest_training(space: Space, key: str, written: int) -> int:
    """The largest value of a setting in a search; the value in the study if the setting is not searched."""
    values = [written]
    for dimension in space.dimensions:
        if dimension.key == key:
            values += [int(value) for value in dimension.choices or (dimension.high,)]  # type: ignore[arg-type]
    return max(values)
