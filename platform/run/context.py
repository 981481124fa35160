"""The context that all steps of a run share: a study, its folder, and its tables, read once.

Properties are computed when they are first used: a step that needs no features does not open the store.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.remote.addresses import is_remote
from equipoise.platform.registry import get
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.study.schema import Study

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cohort import Cohorts
    from equipoise.datasets.store.feature_store import FeatureStore
    from equipoise.platform.training.inputs import StudyInputs


@dataclass
class RunContext:
    """A study and its run folder; tables are read once for all steps of a command.

    Parameters
    ----------
    study, folder
        The study and its run folder.
    only_folds
        Folds to train (``0-1``: repeat 0, fold 1); all of them if empty.
    check_slides
        Whether ``validate`` opens every slide's header.
    measure_winner
        Whether ``search`` evaluates the winner on patients that no trial has seen.
    """

    study: Study
    folder: RunFolder
    only_folds: tuple[str, ...] = ()
    check_slides: bool = False
    measure_winner: bool = True

    @cached_property
    def cohorts(self) -> "Cohorts":
        """Patients and slides of the tables."""
        return read_cohorts(self.study)

    @cached_property
    def usable(self) -> "Cohorts":
        """Patients and slides that have features; needs the step ``extract``."""
        if not self.study.reads_slides:
            return self.cohorts.without_slides()
        return self.cohorts.with_slide_status(self.store.index())

    @cached_property
    def store(self) -> "FeatureStore":
        """The feature store of the study; slide names refer to the files and pixel sizes of the tables."""
        from equipoise.platform.extraction.sources import open_features

        return open_features(self.study.features, self.store_root, self.study.base, self.cohorts.slides)

    @property
    def store_root(self) -> str | Path:
        """Folder of feature stores: a path, or an unchanged address (``s3://…``)."""
        named = self.study.features.store
        return named if is_remote(named) else self.study.base / Path(named).expanduser()

    @property
    def inputs(self) -> "StudyInputs":
        """What trainings of the study read; needs the step ``extract``."""
        from equipoise.platform.training.inputs import StudyInputs

        tiles = self.store if self.study.reads_slides else None
        address = "no tiles" if tiles is None else tiles.spec.address
        return StudyInputs(self.usable, tiles, address, self.content_keys)

    @cached_property
    def content_keys(self) -> dict[str, str]:
        """Patient → text of labels, slides and tables."""
        from equipoise.datasets.omics.alignment import row_digests

        slides: dict[str, list[str]] = {}
        if self.study.reads_slides:
            index = self.store.index().set_index("slide")
            for slide, patient in zip(
                self.usable.slides["slide"], self.usable.slides["patient"], strict=True
            ):
                row = index.loc[slide]
                slides.setdefault(patient, []).append(f"{slide} {row['key']} {row['n']}")
        table = self.usable.patients.set_index("patient")
        labels = table[[column for task in self.study.tasks for column in task.frame_columns]]
        tables = row_digests(self.usable.omics)
        return {
            patient: f"{values.tolist()} {slides.get(patient, [])}{tables.get(patient, '')}"
            for patient, values in zip(labels.index, labels.to_numpy(), strict=True)
        }


def read_cohorts(study: Study) -> "Cohorts":
    """Read the tables of a study."""
    from equipoise.datasets.cohorts.cohort import load_cohorts
    from equipoise.datasets.cohorts.sites import SiteScheme
    from equipoise.datasets.cohorts.subsample import excluded_by_subsample

    schemes = {cohort.site.scheme: get("sites", cohort.site.scheme) for cohort in study.cohorts}
    cohorts = load_cohorts(
        study.cohorts,
        study.tasks,
        study.columns,
        study.base,
        covariates=study.tables.clinical,
        reads=study.reads,
        site_schemes={name: SiteScheme(entry.params, entry.load()) for name, entry in schemes.items()},
    )
    if study.patients_per_site is None:
        return cohorts
    left_out = excluded_by_subsample(cohorts.patients, study.patients_per_site, study.main_task)
    return cohorts.drop(left_out, "subsample")
