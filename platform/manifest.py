"""The manifest of a run: who is in it, which slides, who was left out and why, which folds, what leaks.

Written from the tables by ``validate``, and anew from what could be read by ``extract`` and ``train``.
"""

from typing import TYPE_CHECKING

from equipoise.datasets.whole_files import atomic_path, write_json
from equipoise.platform.errors import DataError
from equipoise.platform.study import Study
from equipoise.platform.workspace import RunFolder

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohort import Cohorts
    from equipoise.datasets.splits import Fold


def write_manifest(folder: RunFolder, cohorts: "Cohorts", slides: "pd.DataFrame") -> None:
    """Patients who are in, all slides with their status, exclusions, flow and warnings under ``manifest/``."""
    manifest = folder.manifest
    for name, table in (("patients", cohorts.patients), ("slides", slides)):
        with atomic_path(manifest / f"{name}.parquet") as path:
            table.to_parquet(path, index=False)
    with atomic_path(manifest / "exclusions.csv") as path:
        cohorts.exclusions.to_csv(path, index=False)
    write_json(manifest / "flow.json", cohorts.flow)
    write_json(manifest / "notes.json", list(cohorts.notes))


def is_of_extraction(folder: RunFolder) -> bool:
    """Whether the manifest is that of an extraction, which knows more than the tables do."""
    import pyarrow.parquet as pq

    slides = folder.manifest / "slides.parquet"
    return slides.exists() and "fingerprint" in pq.read_schema(slides).names


def write_folds(
    study: Study, folder: RunFolder, cohorts: "Cohorts", folds: "list[Fold]", index: "pd.DataFrame | None"
) -> None:
    """Folds, their warnings and the leakage audit under ``manifest/``.

    Parameters
    ----------
    index
        The store's index with fingerprints of slide files; ``None`` before extraction.

    Raises
    ------
    DataError
        If the audit finds a patient, a preserved site or a slide file on both sides of a fold.
    """
    from equipoise.datasets.leakage import leakage_audit, shared_files, shared_sites, split_warnings
    from equipoise.datasets.splits import splits_to_json

    manifest = folder.manifest
    write_json(manifest / "splits.json", splits_to_json(folds, study.splits, study.seed))
    files = None if index is None else cohorts.slides.merge(index[["slide", "fingerprint"]], on="slide")
    preserved = study.splits.scheme == "site_preserved"
    audit = leakage_audit(folds, cohorts.patients, files, preserve_sites=preserved)
    with atomic_path(manifest / "leakage.csv") as path:
        audit.to_csv(path, index=False)
    warnings = split_warnings(folds, cohorts.patients, study.tasks, study.splits)
    write_json(manifest / "warnings.json", [*warnings, *shared_sites(cohorts.patients)])
    if not audit["ok"].all():
        lines = [] if files is None else shared_files(folds, cohorts.patients, files)
        found = "\n".join(f"  {line}" for line in lines) or audit[~audit["ok"]].to_string(index=False)
        raise DataError(
            f"the folds leak:\n{found}",
            where=str(manifest / "leakage.csv"),
            fix="remove one row of each pair from the slides table, or give both the same patient",
        )
