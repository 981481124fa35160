"""What a search would vary and cost, measured from one short trial; writes nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.platform.errors import DataError
from equipoise.platform.search.generate import generate
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.search import Prepared, prepare
from equipoise.platform.search.space import Config
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
    folds = len(prepared.material.folds)
    lines.append(
        f"patients: {len(prepared.searched)} searched on in {folds} folds, {len(prepared.held_out)} held out"
    )
    return "\n".join([*lines, cost(score, params.trials, folds, study.training.epochs)])


def short_trial(prepared: Prepared) -> FoldScore:
    """Two epochs of the study as written on the first inner fold, in this process."""
    from equipoise.platform.search.configuration import configured
    from equipoise.platform.search.trial import run_fold

    brief: Config = {"training.epochs": 2, "training.min_epochs": 1}
    study = configured(prepared.material.settings, brief)
    with tempfile.TemporaryDirectory() as folder:
        return run_fold(prepared.material.folds[0], study, prepared.material, Path(folder) / "fold.pt")


def cost(score: FoldScore, trials: int, folds: int, epochs: int) -> str:
    """The most that a search takes if no trial stops early: a line of text."""
    epoch = score.cpu_seconds / max(score.epochs, 1)
    trial = epoch * epochs * folds
    return (
        f"cost: at most {trials * trial / 3600:.2f} CPU hours: {trials} trials x {folds} folds x {epochs} epochs x "
        f"{epoch:.2f} CPU s, measured on two epochs of the study as written; early stopping makes it less, other "
        "models and methods make it more"
    )
