"""The folds of a run: made from its patients, and asked for once they are trained."""

from typing import TYPE_CHECKING

from equipoise.platform.errors import StudyError
from equipoise.platform.run.context import RunContext
from equipoise.platform.study.schema import Study

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cohort import Cohorts
    from equipoise.datasets.cohorts.splits import Fold


def set_threads(study: Study) -> None:
    """Fix the number of threads: it changes the order of sums and with it the last bits of the result."""
    import torch

    torch.set_num_threads(study.training.threads)


def require_folds(context: RunContext) -> "list[Fold]":
    """The folds, each of them trained with the settings and data of today.

    Raises
    ------
    StudyError
        If one is not trained yet, or was trained with other settings or data.
    """
    from equipoise.platform.training.build import recipe_of
    from equipoise.platform.training.crossval import check_fingerprint, fold_folder
    from equipoise.platform.training.fold_files import require_whole

    folder, inputs, recipe = context.folder, context.inputs, recipe_of(context.study)
    folds = folds_of(context, inputs.cohorts)
    missing = [f"{f.repeat}-{f.index}" for f in folds if not fold_folder(folder.folds, f).exists()]
    if missing:
        raise StudyError(
            f"folds {', '.join(missing)} are not trained yet",
            where=str(folder.folds),
            fix="run `equipoise train`",
        )
    # Before anything is written: results of other folds than these would not match the manifest.
    for fold in folds:
        require_whole(fold_folder(folder.folds, fold), fold)
        check_fingerprint(
            folder.folds, fold, recipe, features=inputs.features, content_keys=inputs.content_keys
        )
    return folds


def folds_of(context: RunContext, cohorts: "Cohorts") -> "list[Fold]":
    """The folds of the development patients, not written to disk."""
    from equipoise.datasets.cohorts.splits import make_folds

    study = context.study
    return make_folds(cohorts.patients, study.split_scheme, study.tasks, study.seed, cohorts.slides)
