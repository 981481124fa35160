"""One set of generated cohorts for all tests of this room."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from equipoise.datasets.synthetic.generate import PatientJob, plan, study_yaml, write_patient, write_tables

SEED = 7


@dataclass(frozen=True)
class Generated:
    """A preset on disk."""

    root: Path
    jobs: list[PatientJob]
    rows: list[dict]

    def slide(self, job: PatientJob) -> Path:
        return self.root / job.cohort / "slides" / job.files[0]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Generated:
    root = tmp_path_factory.mktemp("tiny")
    jobs = plan("tiny", SEED)
    rows = [write_patient(job, root) for job in jobs]
    write_tables("tiny", SEED, root)
    (root / "study.yaml").write_text(study_yaml("tiny", SEED))
    return Generated(root, jobs, rows)
