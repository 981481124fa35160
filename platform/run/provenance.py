"""The provenance of a run: study, code, packages, machine and inputs.

Written at the start of every command. A resumed run checks its inputs against those of the first command, because
predictions must not mix old and new tables. As long as the folder was only validated there is nothing to mix: tables
and study may be corrected and validated again.
"""

import hashlib
import json
import os
from pathlib import Path

import yaml

from equipoise.datasets.atomic_io import read_json, write_json, write_text
from equipoise.datasets.cohorts.published_folds import fold_files
from equipoise.datasets.redaction import masked
from equipoise.datasets.tables.reading import locate
from equipoise.models.rna.folders import CONFIG, WEIGHTS
from equipoise.platform.environment import environment, packages
from equipoise.platform.errors import DataError
from equipoise.platform.registry import get
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.study.schema import Study, json_schema


def record(study: Study, folder: RunFolder) -> None:
    """Write ``provenance/``; ``environment.json`` is that of the first command, ``environments.jsonl`` has them all.

    Raises
    ------
    DataError
        If a table changed since the run began, and a step has left results.
    """
    inputs = input_hashes(study)
    earlier = read_json(folder.provenance / "inputs.json") if folder.holds_results() else None
    # A table that only a newer version records was compared with nothing; the study itself is compared elsewhere.
    if changed := sorted(name for name, old in (earlier or {}).items() if inputs.get(name) != old):
        raise DataError(
            f"changed since this run began: {', '.join(changed)}",
            where=folder.address,
            fix="restore the tables, choose another folder with -o, or --resume never to start again",
        )
    # Its values hold no credentials, its comments might.
    write_text(folder.provenance / "study.yaml", masked(study.file.read_text(encoding="utf-8")))
    write_text(folder.provenance / "resolved.yaml", yaml.safe_dump(study.resolved(), sort_keys=False))
    write_json(folder.provenance / "schema.json", json_schema())
    write_json(folder.provenance / "inputs.json", inputs)
    now = environment()
    if not (folder.provenance / "environment.json").exists():
        write_json(folder.provenance / "environment.json", now)
    with (folder.provenance / "environments.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(now) + "\n")
    write_text(folder.provenance / "packages.txt", "\n".join(packages()) + "\n")


def input_hashes(study: Study) -> dict[str, str]:
    """SHA-256 of every table of the study and of the adapter of its RNA, by the path written in the study.

    Raises
    ------
    DataError
        If a table does not exist.
    """
    named = [
        path
        for cohort in study.cohorts
        for path in (
            *(table.path for table in cohort.clinical_tables),
            cohort.slides.path if cohort.slides else None,
            cohort.site.institution,
            *(source.path for source in cohort.omics.values()),
        )
        if path is not None
    ]
    if study.federation is not None and study.federation.sites.table is not None:
        named.append(study.federation.sites.table)
    if get("splits", study.splits.scheme).attribute("names_patients"):
        named += [os.path.relpath(path, study.base) for path in fold_files(study.splits.files, study.base)]
    if study.encodes_rna and study.tables.rna.adapter is not None:
        files = [Path(study.tables.rna.adapter) / name for name in (CONFIG, WEIGHTS)]
        # One that is absent is refused with its remedy where the adapter is read.
        named += [str(file) for file in files if (study.base / file.expanduser()).is_file()]
    return {
        path: hashlib.sha256(locate(path, study.base).read_bytes()).hexdigest()
        for path in dict.fromkeys(named)
    }
