"""What a search would vary and cost, measured from one short trial; writes nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.platform.errors import DataError
from equipoise.platform.search.generate import generate
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.search import Prepared, prepare
from equipoise.platform.search.space import Config, Space
from equipoise.platform.search.trials import FoldScore

if TYPE_CHECKING:
    from equipoise.platform.study import Study


def describe_search(study: Study) -> str:
    """Space, size, patients and cost as text."""
    from equipoise.platform.work import Work
    from equipoise.platform.workspace import RunFolder

    params = study.search or SearchParams()
    space = generate(study, params)
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
        prepared = prepare(Work(study, RunFolder(Path("unused"))))
        score = short_trial(prepared)
    except DataError as error:
        return "\n".join([*lines, f"cost: not known yet: {error.what}"])
    folds = len(prepared.material.folds) // params.seeds
    lines.append(
        f"patients: {len(prepared.searched)} searched on in {folds} folds, {len(prepared.held_out)} held out"
    )
    if prepared.material.clients:
        sizes = ", ".join(f"{client.name} ({len(client.patients)})" for client in prepared.material.clients)
        lines.append(
            f"federation: every trial trains across {len(prepared.material.clients)} clients: {sizes}"
        )
    return "\n".join([*lines, cost(score, prepared, folds)])


def short_trial(prepared: Prepared) -> FoldScore:
    """Two epochs, or rounds, of the study as written on the first inner fold, in this process."""
    from equipoise.platform.search.configuration import configured
    from equipoise.platform.search.trial import score_fold

    brief: Config = {"training.epochs": 2, "training.min_epochs": 1}
    if prepared.study.federation is not None:
        brief = {"federation.rounds": 2}
    study = configured(prepared.material.settings, brief)
    with tempfile.TemporaryDirectory() as folder:
        return score_fold(prepared.material.folds[0], study, prepared.material, Path(folder))


def cost(score: FoldScore, prepared: Prepared, folds: int) -> str:
    """The most that a search takes if no trial stops early: a line of text.

    Parameters
    ----------
    score
        Of the :func:`short_trial`.
    folds
        Of patients; each is trained with every seed.
    """
    study, trials, seeds = prepared.study, prepared.params.trials, prepared.params.seeds
    pooled = study.federation is None
    unit = "epochs" if pooled else "rounds"
    key, written = "training.epochs", study.training.epochs
    if study.federation is not None:
        key, written = "federation.rounds", study.federation.rounds
    length = longest(prepared.space, key, written)
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


def longest(space: Space, key: str, written: int) -> int:
    """The largest value that a search gives to a setting: that of the study where it is not searched."""
    values = [written]
    for dimension in space.dimensions:
        if dimension.key == key:
            values += [int(value) for value in dimension.choices or (dimension.high,)]  # type: ignore[arg-type]
    return max(values)
