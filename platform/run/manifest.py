"""The manifest of a run: patients, slides, exclusions with reasons, folds and the leakage audit.

Written from the tables by ``validate``, and again from the readable slides by ``extract`` and ``train``.
"""

import logging
from typing import TYPE_CHECKING

from equipoise.datasets.atomic_io import atomic_path, write_json
from equipoise.datasets.cohorts.label_account import FILE as LABELS_FILE
from equipoise.datasets.omics.gene_symbols import FILE as GENE_NAMES_FILE
from equipoise.platform.errors import DataError
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.seen_patients import seen_by_parts, seen_error, seen_sentences
from equipoise.platform.run.table_checks import FILE as BATCHES_FILE
from equipoise.platform.run.table_checks import tables_with_batches
from equipoise.platform.study.schema import Study

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cohort import Cohorts
    from equipoise.datasets.cohorts.splits import Fold

log = logging.getLogger("equipoise")


def write_manifest(folder: RunFolder, cohorts: "Cohorts", slides: "pd.DataFrame") -> None:
    """Write patients, slides with their status, exclusions, accounts of labels, names of genes, flow and notes."""
    manifest = folder.manifest
    for name, table in (("patients", cohorts.patients), ("slides", slides)):
        with atomic_path(manifest / f"{name}.parquet") as path:
            table.to_parquet(path, index=False)
    with atomic_path(manifest / "exclusions.csv") as path:
        cohorts.losses.to_csv(path, index=False)
    if cohorts.gene_names is not None:
        with atomic_path(manifest / GENE_NAMES_FILE) as path:
            cohorts.gene_names.to_csv(path, index=False)
    write_json(manifest / LABELS_FILE, [account.to_json() for account in cohorts.label_accounts])
    write_json(manifest / "flow.json", cohorts.flow)
    write_json(manifest / "notes.json", list(cohorts.notes))


def is_written_by_extract(folder: RunFolder) -> bool:
    """Whether ``extract`` wrote the manifest; it then also has the results of the extraction."""
    import pyarrow.parquet as pq

    slides = folder.manifest / "slides.parquet"
    return slides.exists() and "fingerprint" in pq.read_schema(slides).names


def write_folds(
    study: Study, folder: RunFolder, cohorts: "Cohorts", folds: "list[Fold]", index: "pd.DataFrame | None"
) -> None:
    """Write folds, their warnings, tables that carry their batch and the leakage audit under ``manifest/``.

    Parameters
    ----------
    index
        The store's index with fingerprints of slide files; ``None`` before extraction.

    Raises
    ------
    DataError
        If the audit finds a patient, a preserved site or a slide file on both sides of a fold.
    """
    from equipoise.datasets.cohorts.leakage import (
        SEEN_CHECK,
        leakage_audit,
        shared_files,
        shared_sites,
        split_warnings,
    )
    from equipoise.datasets.cohorts.splits import splits_to_json

    manifest = folder.manifest
    write_json(manifest / "splits.json", splits_to_json(folds, study.splits, study.seed))
    files = None if index is None else cohorts.slides.merge(index[["slide", "fingerprint"]], on="slide")
    seen = seen_by_parts(study)
    audit = leakage_audit(
        folds, cohorts.patients, files, preserve_sites=study.splits.keeps_sites_whole, seen=seen
    )
    with atomic_path(manifest / "leakage.csv") as path:
        audit.to_csv(path, index=False)
    warnings = split_warnings(folds, cohorts.patients, study.tasks, study.splits)
    batches = tables_with_batches(cohorts)
    write_json(manifest / BATCHES_FILE, [table.to_json() for table in batches])
    warnings += [account.warning for account in cohorts.label_accounts if account.warning]
    warnings += [*shared_sites(cohorts.patients), *(table.sentence for table in batches)]
    tested = _tested(folds, cohorts.patients)
    of_seen = seen_sentences(seen, tested, files)
    warnings += of_seen
    write_json(manifest / "warnings.json", warnings)
    for table in batches:
        log.warning("%s", table.sentence)
    for sentence in of_seen:
        log.warning("%s", sentence)
    if of_seen and study.evaluation.seen_patients == "refuse":
        raise seen_error(of_seen, manifest / "leakage.csv")
    audit = audit[~audit["check"].str.endswith(SEEN_CHECK)]
    if not audit["ok"].all():
        lines = [] if files is None else shared_files(folds, cohorts.patients, files)
        leaks = "\n".join(f"  {line}" for line in lines) or audit[~audit["ok"]].to_string(index=False)
        raise DataError(
            f"the folds leak:\n{leaks}",
            where=str(manifest / "leakage.csv"),
            fix="remove one row of each pair from the slides table, or give both the same patient",
        )


def _tested(folds: "list[Fold]", patients: "pd.DataFrame") -> list[str]:
    """Patients of test parts and of external cohorts, in the order of the table."""
    tested = {patient for fold in folds for patient in fold.test}
    listed = patients["patient"].isin(tested) | (patients["role"] == "external")
    return patients.loc[listed, "patient"].tolist()
