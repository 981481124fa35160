"""Tries what a draft would say about a table, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter

from equipoise.datasets.tables.tasks import SurvivalTask, Task
from equipoise.platform.errors import DataError
from equipoise.platform.registry import get
from equipoise.platform.study.table_scan import PatientTable

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.tables.targets import EncodedTask

FOLDS = 5
#: Share of patients whose rows may contradict each other in a column that is used.
MAX_CONFLICTS = 0.1


@dataclass
class Proposal:
    """A task that may be written, as the study has it, with the remark behind it."""

    values: dict[str, Any]
    remark: str = ""

    def line(self, *, main: bool = False) -> str:
        """One line of YAML."""
        text = "- " + flow(self.values | ({"main": True} if main else {}))
        return f"{text}   # check: {self.remark}" if self.remark else text

    @property
    def task(self) -> Task:
        """The task as the study reads it."""
        task: Task = TypeAdapter(Task).validate_python(self.values)
        return task


class Trial:
    """Tries tasks, sites and folds on the clinical table in memory.

    Attributes
    ----------
    site, scheme, folds
        What works: where sites come from, and the folds of the last task that could be folded.
    reasons
        Why columns are not offered.
    """

    def __init__(self, clinical: PatientTable, name: str) -> None:
        self.clinical = clinical
        self.name = name
        self.site, self.scheme, self.folds = "cohort", "kfold", FOLDS
        self.reasons: list[str] = []
        self._encoded: dict[str, EncodedTask] = {}
        self._table = clinical.table[clinical.patients.to_numpy() != ""]
        self.sites = self._sites()

    def merged(self, columns: Sequence[str]) -> tuple[pd.DataFrame, dict[str, str]]:
        """One row per patient, and patients whose rows contradict."""
        from equipoise.datasets.cohorts.cohort_tables import merge_rows

        return merge_rows(self._table, str(self.clinical.columns.patient), columns)

    def can_read(self, column: str, kind: str) -> bool:
        """Whether a covariate can be read; if not, the reason is kept."""
        from equipoise.datasets.omics.covariates import covariate_table
        from equipoise.datasets.omics.params import Covariate

        try:
            labels, conflicts = self.merged([column])
            if len(conflicts) > MAX_CONFLICTS * len(labels):
                raise DataError(f"the rows of {len(conflicts)} patients contradict")
            covariate = Covariate.model_validate({"column": column, "type": kind})
            covariate_table([(self.name, labels)], [covariate], [column])
        except DataError as error:
            self.reasons.append(f"{column!r} is no covariate: {' '.join(error.what.split())}")
            return False
        return True

    def can_use(self, proposal: Proposal) -> bool:
        """Whether a task can be read from the table; if not, the reason is kept."""
        from equipoise.datasets.tables.targets import encode

        task = proposal.task
        try:
            labels, conflicts = self.merged(task.columns)
            if len(conflicts) > MAX_CONFLICTS * len(labels):
                raise DataError(f"the rows of {len(conflicts)} patients contradict")
            encoded = encode(task, labels.drop(index=list(conflicts)))
            if len({*encoded.columns()[task.frame_columns[-1]][encoded.known]}) < 2 and not isinstance(
                task, SurvivalTask
            ):
                raise DataError("all patients have the same value")
        except DataError as error:
            self.reasons.append(
                f"{', '.join(map(repr, task.columns))} is not offered: {' '.join(error.what.split())}"
            )
            return False
        self._encoded[task.name] = encoded
        return True

    def can_fold(self, proposal: Proposal) -> bool:
        """Whether folds can be made on a task; the draft then has their scheme."""
        from equipoise.datasets.cohorts.splits import SplitScheme, make_folds

        task = proposal.task
        table = self._patients(task)
        schemes = [("kfold", FOLDS), ("kfold", 3), ("kfold", 2)]
        if len(set(self.sites)) > 1:
            schemes.insert(0, ("site_preserved", min(FOLDS, len(set(self.sites)))))
        for scheme, folds in schemes:
            entry = get("splits", scheme)
            params: Any = entry.params(folds=folds)
            try:
                make_folds(table, SplitScheme(entry.load(), params), [task], 42)
            except DataError as error:
                reason = f"{task.name}: {scheme} with {folds} folds: {error.what}"
                self.reasons.append(" ".join(reason.split()))
                continue
            self.scheme, self.folds = scheme, folds
            return True
        return False

    def _patients(self, task: Task) -> pd.DataFrame:
        """The development patients of a study with this task alone."""
        import pandas as pd

        encoded = self._encoded[task.name]
        site = dict(zip(self.merged([])[0].index, self.sites, strict=True))
        table = pd.DataFrame(encoded.columns()).assign(
            patient=list(encoded.patients), role="develop", cohort=self.name
        )
        table["site"] = [site[patient] for patient in table["patient"]]
        return table[encoded.known]

    def _sites(self) -> list[str]:
        """Sites from barcodes where all patients have one, else the cohort."""
        from equipoise.datasets.cohorts.sites import tss_code

        patients = self.merged([])[0].index
        codes = [tss_code(str(patient)) for patient in patients]
        if codes and None not in codes:
            self.site = "tss"
            return [str(code) for code in codes]
        return [self.name] * len(codes)


def flow(value: Any) -> str:
    """One line of YAML that may stand inside brackets."""
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.strip()[1:-1]
