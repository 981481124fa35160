"""The interface of the generator: plan the patients, write their slides one by one, then the tables.

::

    for job in plan("quick", seed=7):
        if not is_done(job, root):
            write_patient(job, root)  # in any order, on any number of workers
    write_tables("quick", 7, root)
    (root / "study.yaml").write_text(study_yaml("quick", 7))
"""

from equipoise.datasets.synthetic.jobs import VERSION, PatientJob, is_done, plan
from equipoise.datasets.synthetic.manifest import write_manifest, write_tables
from equipoise.datasets.synthetic.slide import write_patient
from equipoise.datasets.synthetic.study_text import study_yaml

__all__ = [
    "VERSION",
    "PatientJob",
    "is_done",
    "plan",
    "study_yaml",
    "write_manifest",
    "write_patient",
    "write_tables",
]
