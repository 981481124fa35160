"""The context that all steps of a run share: a study, its folder, its tables, and what trainings read.

Tables and inputs are read once, when they are first used: a step that needs no features does not open the store.
"""

import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.errors import DataWarning
from equipoise.datasets.omics.params import CLINICAL
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
    folds_from
        Other run folders of the study, whose finished folds are taken before any is trained.
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
    folds_from: tuple[Path, ...] = ()
    _inputs: "StudyInputs | None" = field(default=None, init=False, repr=False)

    @cached_property
    def cohorts(self) -> "Cohorts":
        """Patients and slides of the tables."""
        return read_cohorts(self.study)

    @property
    def store_root(self) -> str | Path:
        """Folder of feature stores: a path, or an unchanged address (``s3://…``)."""
        return store_root_of(self.study)

    @property
    def inputs(self) -> "StudyInputs":
        """Patients and tiles that trainings read; needs the step ``extract``."""
        if self._inputs is None:
            self._inputs = read_inputs(self.study, self.cohorts, self.store_root)
        return self._inputs

    def with_all_tables(self) -> "StudyInputs":
        """:attr:`inputs` with every table that the study names, also those that its model does not read, and with RNA
        as its table holds it, whatever encoder the model reads it through."""
        inputs = self.inputs
        named: set[str] = {modality for cohort in self.study.cohorts for modality in cohort.omics}
        named |= {CLINICAL} if self.study.tables.clinical else set()
        if named <= self.study.reads and self.study.tables.rna.encoder is None:
            return inputs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # of tables that the model does not read
            tables = read_cohorts(self.study, frozenset(named) | self.study.reads).omics
        return replace(inputs, cohorts=replace(inputs.cohorts, omics=tables))

    def forget_inputs(self) -> None:
        """Read :attr:`inputs` again when they are next used: the feature store has changed."""
        self._inputs = None


def store_root_of(study: Study) -> str | Path:
    """Folder of the feature stores of a study: a path, or an unchanged address (``s3://…``)."""
    named = study.features.store
    return named if is_remote(named) else study.base / Path(named).expanduser()


def read_inputs(study: Study, cohorts: "Cohorts", store_root: str | Path) -> "StudyInputs":
    """Open the feature store of a study, and keep the patients and slides that have features; RNA is encoded.

    Raises
    ------
    DataError
        If there is no store yet, or it was made with other settings.
    """
    from equipoise.platform.training.inputs import StudyInputs

    if study.encodes_rna and "rna" in cohorts.omics:
        from equipoise.platform.extraction.rna_cohorts import with_rna_vectors

        cohorts = with_rna_vectors(cohorts, study.tables.rna, study.base, store_root)
    if not study.reads_slides:
        usable = cohorts.without_slides()
        return StudyInputs(usable, None, "no tiles", content_keys(study, usable, None))
    from equipoise.platform.extraction.sources import open_features

    # Slide names refer to the files and pixel sizes of the tables.
    store = open_features(study.features, store_root, study.base, cohorts.slides)
    if study.training.start is not None:
        from equipoise.platform.extraction.slide_vectors import trained_tiles
        from equipoise.platform.training.start import check_start_tiles

        check_start_tiles(study.base / Path(study.training.start).expanduser(), trained_tiles(store.spec))
    usable = cohorts.with_slide_status(store.index())
    states = None
    if (kept := study.model.hidden_states) is not None:
        from equipoise.platform.extraction.hidden_states import open_states

        states = open_states(usable.slides, store, kept, study.features, store_root)
    return StudyInputs(usable, store, store.spec.address, content_keys(study, usable, store), states)


def content_keys(study: Study, usable: "Cohorts", store: "FeatureStore | None") -> dict[str, str]:
    """Patient → text of labels, slides and tables."""
    from equipoise.datasets.omics.alignment import row_digests

    slides: dict[str, list[str]] = {}
    if store is not None:
        index = store.index().set_index("slide")
        for slide, patient in zip(usable.slides["slide"], usable.slides["patient"], strict=True):
            row = index.loc[slide]
            slides.setdefault(patient, []).append(f"{slide} {row['key']} {row['n']}")
    table = usable.patients.set_index("patient")
    labels = table[[column for task in study.tasks for column in task.frame_columns]]
    tables = row_digests(usable.omics)
    return {
        patient: f"{values.tolist()} {slides.get(patient, [])}{tables.get(patient, '')}"
        for patient, values in zip(labels.index, labels.to_numpy(), strict=True)
    }


def read_cohorts(study: Study, reads: frozenset[str] | None = None) -> "Cohorts":
    """Read the tables of a study: those that its model reads, or those of ``reads``."""
    from equipoise.datasets.cohorts.cohort import excluded_by_subsample, load_cohorts
    from equipoise.datasets.cohorts.sites import SiteScheme
    from equipoise.datasets.omics.gene_sets import overlap_note
    from equipoise.datasets.omics.resolution import resolve_tables

    schemes = {cohort.site.scheme: get("sites", cohort.site.scheme) for cohort in study.cohorts}
    cohorts = load_cohorts(
        study.cohorts,
        study.tasks,
        study.columns,
        study.base,
        covariates=study.tables.clinical,
        reads=study.reads if reads is None else reads,
        site_schemes={name: SiteScheme(entry.params, entry.load()) for name, entry in schemes.items()},
    )
    chosen = resolve_tables(study.tables, study.cohorts, study.base).rna.gene_sets
    if chosen is not None and "rna" in cohorts.omics:
        note = overlap_note(chosen.sets, list(cohorts.omics["rna"].columns), chosen.min_genes)
        cohorts = replace(cohorts, notes=(*cohorts.notes, note))
    if get("splits", study.splits.scheme).attribute("names_patients"):
        cohorts = _only_listed(cohorts, study)
    if study.patients_per_site is None:
        return cohorts
    left_out = excluded_by_subsample(cohorts.patients, study.patients_per_site, study.main_task)
    return cohorts.drop(left_out, "subsample")


def _only_listed(cohorts: "Cohorts", study: Study) -> "Cohorts":
    """Without development patients that no fold of the study's files names; a note counts them."""
    from equipoise.datasets.cohorts.published_folds import unlisted_patients

    left_out = unlisted_patients(study.splits, study.base, cohorts.patients, cohorts.slides)
    kept = cohorts.drop(left_out, "in folds")
    if not left_out:
        return kept
    note = f"{len(left_out)} patients are in no fold of splits.files: {', '.join([*left_out][:3])}, …"
    return replace(kept, notes=(*kept.notes, note))
