"""Folds that other run folders of the same study trained, taken into this one.

A fold depends on the study, its patients and its own number alone (:mod:`equipoise.platform.training.crossval`), so it
may be trained anywhere: each task of a SLURM array, or each of several machines, trains its folds in a run folder of
its own, and one run takes them all.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.platform.run.folder import RunFolder

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.splits import Fold

log = logging.getLogger("equipoise")


def take_folds(
    folds: "Sequence[Fold]", folder: RunFolder, others: Sequence[Path], check: "Callable[[Path, Fold], None]"
) -> list[str]:
    """Copy finished folds, with their curves, from the first of other run folders that has them.

    A copy appears at once: it is made beside its place and renamed.

    Parameters
    ----------
    folds
        The folds to take.
    folder
        The run folder that takes them; a fold that it already has stays as it is.
    others
        Run folders. One without folds is named in a warning, a fold that is not finished or damaged there passed over.
    check
        Raises if a fold in a folder of folds was trained with other settings or data.

    Returns
    -------
    list of str
        Names of the folds that were taken.
    """
    from equipoise.platform.training.crossval import fold_folder
    from equipoise.platform.training.fold_files import fold_problem

    taken = []
    for other in map(RunFolder, others):
        if not other.folds.is_dir():
            log.warning("%s holds no trained fold", other.root)
            continue
        for fold in folds:
            source, target = fold_folder(other.folds, fold), fold_folder(folder.folds, fold)
            if target.exists() or not source.exists():
                continue
            if problem := fold_problem(source, fold):
                log.warning("fold=%s is not taken from %s: %s", source.name, other.root, problem)
                continue
            check(other.folds, fold)
            if (curves := other.tensorboard / source.name).is_dir():
                _copy(curves, folder.tensorboard / source.name)
            _copy(source, target)
            log.info("fold=%s taken from %s", source.name, other.root)
            taken.append(source.name)
    return taken


def _copy(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.taken")
    for leftover in (beside, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, beside)
    beside.rename(target)
