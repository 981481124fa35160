"""All cohorts of a study as one table of patients, one of slides, omics, exclusions and the participant flow.

The only way from a user's tables to what is split, extracted and trained on. Nobody is dropped without a row
in ``exclusions``; label maps are decided over all cohorts at once, so that no cohort reads a value
differently.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.cohorts.assembly import (
    encode_all,
    load_covariates,
    patient_table,
    run_flow,
    select_patients,
    slide_table,
)
from equipoise.datasets.cohorts.checks import (
    absent_columns,
    refuse_empty,
    refuse_impossible,
    refuse_repeated,
    refuse_shared_patients,
    survival_notes,
    unit_notes,
)
from equipoise.datasets.cohorts.cohort_tables import RawCohort, read_cohort
from equipoise.datasets.cohorts.flow import STATUS_STAGE, Flow, exclusion_table
from equipoise.datasets.cohorts.keys import similar_note
from equipoise.datasets.cohorts.label_account import STAGE, LabelAccount, label_accounts, label_gaps
from equipoise.datasets.cohorts.omics_tables import load_omics
from equipoise.datasets.cohorts.sites import SCHEMES, SiteScheme
from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.expression import Expression
from equipoise.datasets.omics.params import CLINICAL, Covariate
from equipoise.datasets.params import CohortSource, Columns
from equipoise.datasets.tables.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CohortSource", "Cohorts", "Columns", "load_cohorts"]


@dataclass(frozen=True)
class Cohorts:
    """Patients and slides that are in, and who is not and why.

    Attributes
    ----------
    tasks
        Prediction targets in the order of the study.
    patients
        Columns patient, cohort, role, site and per task ``NAME`` (or ``NAME.time`` in days and
        ``NAME.event``), NaN = missing; in the order of the study's cohorts and their tables.
    slides
        Columns slide (unique name), patient, cohort, path, mpp (NaN = as the slide says); in manifest order.
    omics
        Modality → float32 [patients, columns], indexed by patient; a patient without a row lacks the modality.
        ``clinical`` are the covariates.
    exclusions
        Columns cohort, patient, slide, stage, reason; ``slide`` is empty where a patient as a whole is left
        out.
    label_gaps
        Columns cohort, patient, task, kind, value, reason, expected, row: patients without a label for a task, those
        included who left because no task has one.
    flow
        Rows {cohort, stage, patients, slides, excluded, excluded_slides}.
    notes
        Remarks for terminal and report.
    tables_suffice
        Whether a patient without a slide can be learned from, by a row in one of the tables.
    expression
        Cohort → what its RNA values are, declared or detected.
    gene_names
        Columns cohort, modality, name, symbol, change, result: names of genes that are others in ``omics``, or that a
        table of names does not know; ``None`` without omics.
    """

    tasks: tuple[Task, ...]
    patients: pd.DataFrame
    slides: pd.DataFrame
    omics: dict[str, pd.DataFrame]
    exclusions: pd.DataFrame
    label_gaps: pd.DataFrame
    flow: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()
    tables_suffice: bool = False
    expression: Mapping[str, Expression] = field(default_factory=dict)
    gene_names: pd.DataFrame | None = None

    @property
    def label_accounts(self) -> tuple[LabelAccount, ...]:
        """Per task and cohort, how many patients have a label, and why the others have none."""
        return label_accounts(self.patients, self.label_gaps, self.tasks)

    @property
    def losses(self) -> pd.DataFrame:
        """All that is left out, as in ``manifest/exclusions.csv``: exclusions, and missing labels of patients who stay.

        Columns cohort, patient, slide, task, stage, reason; a row with a task takes the patient out of that task only.
        """
        import pandas as pd

        gaps = self.label_gaps[self.label_gaps["patient"].isin(self.patients["patient"])]
        labels = gaps[["cohort", "patient", "task", "reason"]].assign(slide="", stage=STAGE)
        columns = ["cohort", "patient", "slide", "task", "stage", "reason"]
        return pd.concat([self.exclusions.assign(task=""), labels], ignore_index=True)[columns]

    def with_slide_status(self, index: pd.DataFrame) -> Cohorts:
        """Leave out slides that extraction could not use, and patients that have nothing else.

        Parameters
        ----------
        index
            Columns slide, status (``ok`` or a reason code) and error (text); slides that it does not list
            count as missing. Cohorts without a slides table pass unchanged.

        Raises
        ------
        DataError
            If a slide has several rows, or nobody, or nobody of a class, is left to learn from.
        """
        if repeated := list(index["slide"][index["slide"].duplicated()]):
            raise DataError(
                f"{len(repeated)} slides have several rows ({', '.join(map(str, repeated[:3]))})",
                where="slide index",
                fix="pass only the rows of this study's slides, as FeatureStore.choose selects them",
            )
        status = dict(zip(index["slide"], zip(index["status"], index["error"], strict=True), strict=True))
        tabled = {p for table in self.omics.values() for p in table.index} if self.tables_suffice else set()
        return self._after(
            lambda flow: _drop_failed(flow, status, tabled) if flow.slides else None, last=True
        )

    def without_slides(self) -> Cohorts:
        """The last stage of a study whose model reads tables only: nothing can fail any more."""
        return self._after(lambda flow: None, last=True)

    def drop(self, reasons: Mapping[str, str], stage: str) -> Cohorts:
        """Leave out patients for another reason: a smoke run, withdrawn consent.

        Parameters
        ----------
        reasons
            Patient → reason.
        stage
            Name of the stage in flow and exclusions.
        """

        def advance(flow: Flow) -> None:
            flow.drop_patients(reasons, stage)
            flow.close(stage)

        return self._after(advance, last=any(row["stage"] == "used" for row in self.flow))

    def require_learnable(self) -> None:
        """Refuse to go on when too little is left; not part of the stages, so that a manifest can be written first.

        Raises
        ------
        DataError
            If no development patient is left, or a task has nothing to learn in development: a class without
            patients, no event, one value.
        """
        refuse_empty(self.patients, self.flow, (), learning=True)
        refuse_impossible(self.patients, self.tasks)

    def _after(self, advance: Callable[[Flow], None], *, last: bool) -> Cohorts:
        """Every cohort sent through further stages; after the last one, ``used`` counts who is left."""
        import pandas as pd

        flows: list[Flow] = []
        for name, part in self.patients.groupby("cohort", sort=False):
            cohort_slides = self.slides[self.slides["cohort"] == name]
            flow = Flow(
                str(name),
                part["patient"],
                dict(zip(cohort_slides["slide"], cohort_slides["patient"], strict=True)),
            )
            advance(flow)
            if last:
                flow.close("used")
            flows.append(flow)
        patients = self.patients[self.patients["patient"].isin([p for flow in flows for p in flow.patients])]
        slides = self.slides[self.slides["slide"].isin([s for flow in flows for s in flow.slides or {}])]
        gone = set(self.patients["patient"]) - set(patients["patient"])
        # "used" is the last word of a flow: an earlier one gives way to the new one.
        counts = _by_cohort(
            [*(r for r in self.flow if r["stage"] != "used"), *(r for f in flows for r in f.counts)]
        )
        lost = exclusion_table(row for flow in flows for row in flow.exclusions)
        return replace(
            self,
            patients=patients.reset_index(drop=True),
            slides=slides.reset_index(drop=True),
            omics=select_patients(self.omics, patients["patient"]),
            exclusions=pd.concat([self.exclusions, lost], ignore_index=True),
            label_gaps=self.label_gaps[~self.label_gaps["patient"].isin(gone)].reset_index(drop=True),
            flow=counts,
            notes=self.notes + _emptied(self.patients, patients),
        )


def load_cohorts(
    sources: Sequence[CohortSource],
    tasks: Sequence[Task],
    columns: Columns | None,
    base: Path,
    *,
    covariates: Sequence[Covariate] = (),
    reads: frozenset[str] | None = None,
    site_schemes: Mapping[str, SiteScheme] = SCHEMES,
) -> Cohorts:
    """Read, check and encode all cohorts of a study.

    Parameters
    ----------
    sources
        Cohorts in the order of the study.
    tasks
        Prediction targets; without any, everybody is in (features can be extracted before there are labels).
    columns
        The study's columns; those of a cohort take precedence.
    base
        Folder of the study file, from which relative paths start.
    covariates
        Columns of the clinical table that are read as the modality ``clinical``.
    reads
        Modalities that the model reads, ``wsi`` for slides: others are not loaded, and who has none of them is
        left out. ``None`` loads everything, and a patient of a slides table needs a slide.
    site_schemes
        Name → site scheme, of all that the cohorts name.

    Raises
    ------
    DataError
        If a table cannot be used, a patient stands in two cohorts, a task's column is in no cohort, a label
        map is incomplete or names a class that nobody has, or a cohort is empty.
    """
    refuse_repeated([source.name for source in sources], "cohorts")
    refuse_repeated([task.name for task in tasks], "tasks")
    predicted = list(dict.fromkeys(column for task in tasks for column in task.columns))
    if reads is not None and CLINICAL not in reads:
        covariates = ()
    if reads is not None and "wsi" not in reads:
        sources = [source.model_copy(update={"slides": None, "slides_dir": None}) for source in sources]
    needed = list(dict.fromkeys([*predicted, *(covariate.column for covariate in covariates)]))
    raw = [
        read_cohort(s, needed, (s.columns or Columns()).or_else(columns), base, site_schemes) for s in sources
    ]
    return assemble(raw, tasks, columns, base, covariates=covariates, reads=reads)


def assemble(
    raw: Sequence[RawCohort],
    tasks: Sequence[Task],
    columns: Columns | None,
    base: Path,
    *,
    covariates: Sequence[Covariate] = (),
    reads: frozenset[str] | None = None,
) -> Cohorts:
    """Check and encode cohorts whose tables are read, and read their omics; parameters as of :func:`load_cohorts`.

    Raises
    ------
    DataError
        As :func:`load_cohorts`.
    """
    predicted = list(dict.fromkeys(column for task in tasks for column in task.columns))
    refuse_shared_patients(raw)
    notes = [note for cohort in raw for note in cohort.notes]
    owner = {patient: cohort.source.name for cohort in raw for patient in cohort.labels.index}
    notes += filter(None, [similar_note("cohorts", owner, across=True)])
    notes += absent_columns(raw, tasks)
    encoded = [encode_all(task, raw) for task in tasks]
    clinical, clinical_notes = load_covariates(raw, covariates)
    read = load_omics(raw, columns, base, reads, predicted)
    omics = clinical | read.tables
    suffice = reads is not None and reads != {"wsi"}
    flows = run_flow(raw, encoded, omics if suffice else None)
    flow = _by_cohort(row for cohort in flows for row in cohort.counts)
    patients = patient_table(raw, encoded, flows)
    names = [cohort.source.name for cohort in raw]
    refuse_empty(patients, flow, names, learning=False)
    notes += clinical_notes + read.notes
    notes += [note for task in encoded for note in task.notes]
    notes += unit_notes(patients, tasks) + survival_notes(tasks)
    row_of = {patient: row for cohort in raw for patient, row in cohort.rows.items()}
    return Cohorts(
        tasks=tuple(tasks),
        patients=patients,
        slides=slide_table(raw, flows),
        omics=select_patients(omics, patients["patient"]),
        exclusions=exclusion_table(row for cohort in flows for row in cohort.exclusions),
        label_gaps=label_gaps(_looked_at(flows), encoded, row_of),
        flow=flow,
        notes=tuple(notes),
        tables_suffice=suffice,
        expression=read.expression,
        gene_names=read.gene_names if read.tables else None,
    )


def _looked_at(flows: Sequence[Flow]) -> dict[str, str]:
    """Patient → cohort of everybody who is in, or left because no task has a label."""
    return {
        patient: flow.cohort
        for flow in flows
        for patient in [
            *flow.patients,
            *(r["patient"] for r in flow.exclusions if r["stage"] == "has label" and not r["slide"]),
        ]
    }


def _drop_failed(flow: Flow, status: Mapping[str, tuple[str, object]], tabled: Collection[str]) -> None:
    """Stages ``readable``, ``mpp ok`` and ``tissue``: a patient leaves with the last slide, unless in a table."""
    lost: dict[str, dict[str, str]] = {"readable": {}, "mpp ok": {}, "tissue": {}}
    for slide in flow.slides or {}:
        state, error = status.get(slide, ("missing", "the slide was not extracted"))
        if state != "ok":
            reason = f"{state}: {error}" if isinstance(error, str) and error else str(state)
            lost[STATUS_STAGE.get(state, "readable")][slide] = reason
    for stage, reasons in lost.items():
        owners: dict[str, list[str]] = {}
        for slide, reason in reasons.items():
            owners.setdefault((flow.slides or {})[slide], []).append(f"{slide}: {reason}")
        flow.drop_slides(reasons, stage)
        kept = {*(flow.slides or {}).values(), *tabled}
        flow.drop_patients(
            {p: "no usable slide; " + "; ".join(r) for p, r in owners.items() if p not in kept}, stage
        )
        flow.close(stage)


def _by_cohort(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Flow rows of each cohort together, in the order in which cohorts first appear."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["cohort"], []).append(row)
    return tuple(row for part in grouped.values() for row in part)


def _emptied(before: pd.DataFrame, after: pd.DataFrame) -> tuple[str, ...]:
    gone = [name for name in dict.fromkeys(before["cohort"]) if name not in set(after["cohort"])]
    return tuple(f"cohort {name}: nobody is left; see the exclusions" for name in gone)


#: Patients of each class that a cohort keeps regardless of its sites: folds with inner validation need them.
MIN_PER_CLASS = 6


def excluded_by_subsample(patients: pd.DataFrame, per_site: int, task: Task | None) -> dict[str, str]:
    """Patients to leave out so that each site keeps at most ``per_site``, but each cohort keeps some of each class.

    Within a site, patients are taken from each value of the task in turn, in the order of the table: rare classes
    are kept and no random number is needed.

    Parameters
    ----------
    patients
        Columns patient, cohort, site and those of the task.
    per_site
        Patients to keep.
    task
        The task whose classes (or events) are taken in turn; ``None`` takes the first patients.

    Returns
    -------
    Patient → reason, as :meth:`~equipoise.datasets.cohorts.cohort.Cohorts.drop` takes it.
    """
    reason = f"not in the subsample (patients_per_site: {per_site})"
    column = None if task is None or task.type == "regression" else task.frame_columns[-1]
    kept: set[str] = set()
    for _, site in patients.groupby(["cohort", "site"], sort=False):
        if column is None:
            ordered = site
        else:
            values = site[column].fillna(-1)  # missing labels come last
            turn = values.groupby(values).cumcount()
            ordered = site.assign(_turn=turn, _last=-values).sort_values(["_turn", "_last"], kind="stable")
        kept |= set(ordered["patient"].iloc[:per_site])
    for _, cohort in patients.groupby("cohort", sort=False):
        groups = [cohort] if column is None else [part for _, part in cohort.groupby(column)]
        for group in groups:
            lacking = MIN_PER_CLASS - int(group["patient"].isin(kept).sum())
            kept |= set(group.loc[~group["patient"].isin(kept), "patient"].iloc[: max(lacking, 0)])
    return {patient: reason for patient in patients["patient"] if patient not in kept}
