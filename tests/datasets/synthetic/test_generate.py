import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter

from equipoise.datasets.cohorts.cohort import load_cohorts
from equipoise.datasets.params import CohortSource
from equipoise.datasets.synthetic import containers, jobs
from equipoise.datasets.synthetic.generate import (
    is_done,
    plan,
    study_yaml,
    write_manifest,
    write_patient,
    write_tables,
)
from equipoise.datasets.synthetic.layout import MASK_CLASSES
from equipoise.datasets.synthetic.params import Knobs
from equipoise.datasets.synthetic.slide import sha256
from equipoise.datasets.tables.tasks import Task


def test_same_seed_same_bytes_and_no_patient_depends_on_another(tiny, tmp_path):
    for k in (11, 3):  # alone, in another order, into another folder
        row = write_patient(tiny.jobs[k], tmp_path)
        assert row == tiny.rows[k]
        assert sha256(tmp_path / row["files"][0]) == row["sha256"][0]


def test_another_seed_gives_other_bytes(tiny, tmp_path):
    row = write_patient(plan("tiny", 8)[0], tmp_path)
    assert row["sha256"] != tiny.rows[0]["sha256"]


def test_rows_say_what_was_written(tiny):
    assert len(tiny.jobs) > 0
    for job, row in zip(tiny.jobs, tiny.rows, strict=True):
        assert (row["patient"], row["cohort"], row["status"]) == (job.patient, job.cohort, "ok")
        assert row["bytes"] == tiny.slide(job).stat().st_size
        assert is_done(job, tiny.root)
    assert not list(tiny.root.rglob("*.tmp"))


def test_only_whole_slides_of_the_very_job_are_done(tiny, tmp_path, monkeypatch):
    job = tiny.jobs[0]
    assert not is_done(job, tmp_path)
    row = write_patient(job, tmp_path)
    assert is_done(job, tmp_path)
    assert not is_done(replace(job, seed=8), tmp_path)
    assert not is_done(replace(job, side_um=700), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "VERSION", 99)
        assert not is_done(job, tmp_path)
    path = tmp_path / row["files"][0]
    path.write_bytes(path.read_bytes()[:-100])
    assert not is_done(job, tmp_path)
    path.unlink()
    assert not is_done(job, tmp_path)


def test_a_knob_at_its_default_changes_nothing_that_was_written_before_it():
    # Written by the release before the knob image_contrast; a slide of another fingerprint would be drawn again.
    assert plan("tiny", 7)[0].fingerprint() == (
        "86ee3e4b1b44d505554b31d8f92a362df42bb7e4abfa7786d123117ada31189a"
    )
    assert "image_contrast" not in Knobs().model_dump()
    assert Knobs(image_contrast=2).model_dump()["image_contrast"] == 2


def test_a_failure_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    def explode(*_):
        raise OSError("disk full")

    original = containers.open_container("aperio", tmp_path / "probe", _info())
    original.close()
    monkeypatch.setattr(type(original), "finish", explode)
    (tmp_path / "probe").unlink()
    with pytest.raises(OSError, match="disk full"):
        write_patient(tiny.jobs[0], tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not is_done(tiny.jobs[0], tmp_path)


def _info() -> containers.SlideInfo:
    return containers.SlideInfo("SYN", "syn", 7, 256, 256, 0.5, 20, 80)


def test_masks_fit_their_slides(tiny):
    job = tiny.jobs[0]
    mask = np.asarray(Image.open(tiny.root / job.cohort / "truth" / "masks" / f"{job.slides[0].barcode}.png"))
    assert mask.shape == (80, 80)
    assert mask.max() < len(MASK_CLASSES)
    assert {0, 1, 2} <= set(np.unique(mask))


def test_manifest_vouches_for_every_file(tiny):
    manifest = json.loads((tiny.root / "manifest.json").read_text())
    assert manifest["notice"].startswith("SYNTHETIC")
    assert (manifest["preset"], manifest["seed"], manifest["complete"]) == ("tiny", 7, True)
    assert manifest["knobs"]["rho_image"] == 0.9
    listed = set(manifest["files"])
    there = {
        p.relative_to(tiny.root).as_posix()
        for p in tiny.root.rglob("*")
        if p.is_file() and "receipts" not in p.parts
    }
    assert there - listed == {"manifest.json", "study.yaml"}
    assert listed <= there
    for name, entry in manifest["files"].items():
        assert sha256(tiny.root / name) == entry["sha256"]
        assert (tiny.root / name).stat().st_size == entry["bytes"]


def test_manifest_admits_what_is_absent(tmp_path):
    write_tables("tiny", 7, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert not manifest["complete"]
    assert manifest["absent"] == [job.patient for job in plan("tiny", 7)]
    write_patient(plan("tiny", 7)[0], tmp_path)
    write_manifest("tiny", 7, tmp_path)
    assert len(json.loads((tmp_path / "manifest.json").read_text())["absent"]) == len(plan("tiny", 7)) - 1


def test_slides_table_lists_exactly_the_slides(tiny):
    for cohort in ("syn-crc-a", "syn-crc-b"):
        table = pd.read_csv(tiny.root / cohort / "slides.csv")
        assert list(table.columns) == ["PATIENT", "FILENAME"]
        there = {path.name for path in (tiny.root / cohort / "slides").iterdir()}
        assert set(table.FILENAME) == there
        clinical = pd.read_csv(tiny.root / cohort / "clinical.csv", dtype=str, keep_default_na=False)
        assert set(table.PATIENT) <= set(clinical.PATIENT)
        labelled = clinical[clinical.PATIENT.isin(table.PATIENT)].MSI.value_counts()
        assert min(labelled["MSI-H"], labelled["MSS"]) >= 2


@pytest.mark.parametrize("preset", ["tiny", "quick", "demo"])
def test_study_fits_the_tables(preset, tmp_path):
    study = yaml.safe_load(study_yaml(preset, 11))
    assert (study["version"], study["seed"], study["synthetic"]) == (1, 11, True)
    cohorts = [CohortSource.model_validate(cohort) for cohort in study["cohorts"]]
    tasks = TypeAdapter(list[Task]).validate_python(study["tasks"])
    write_tables(preset, 11, tmp_path)
    assert len(cohorts) > 0
    for cohort in cohorts:
        columns = pd.read_csv(tmp_path / cohort.clinical.path).columns
        assert {column for task in tasks for column in task.columns} <= set(columns)
        assert all((tmp_path / source.path).is_file() for source in cohort.omics.values())
    assert cohorts[0].role == "develop"
    assert {cohort.role for cohort in cohorts[1:]} == (
        {"develop"} if preset == "tiny" else {"develop", "external"} if preset == "demo" else {"external"}
    )
    assert [task.name for task in tasks if task.main] == ["MSI"]


def test_nothing_outside_this_folder_opens_the_truth(root):
    for folder in ("platform", "models", "jobs", "datasets"):
        files = list((root / folder).rglob("*.py"))
        assert files, folder
        for path in files:
            if "synthetic" not in path.parts:
                found = re.search(r"""['"/]truth(/|['"])""", path.read_text(encoding="utf-8"))
                assert not found, f"{path} names the folder of the truth"


def test_cohorts_load_the_same_without_the_truth(tiny, tmp_path):
    study = yaml.safe_load((tiny.root / "study.yaml").read_text())
    sources = [CohortSource.model_validate(cohort) for cohort in study["cohorts"]]
    tasks = TypeAdapter(list[Task]).validate_python(study["tasks"])
    shutil.copytree(tiny.root, tmp_path / "bare", ignore=shutil.ignore_patterns("truth", "manifest.json"))
    with_truth, without = (
        load_cohorts(sources, tasks, None, base) for base in (tiny.root, tmp_path / "bare")
    )
    pd.testing.assert_frame_equal(with_truth.patients, without.patients)
    assert with_truth.flow == without.flow
    assert len(without.slides) == len(tiny.jobs)
    assert set(without.patients.site) <= {f"{letter}{k}" for letter in "ST" for k in range(1, 5)}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_two_millimetre_slide_fits_in_little_memory(tmp_path):
    # VmHWM and not ru_maxrss: the latter carries over from the process that started this one.
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from equipoise.datasets.synthetic.generate import plan, write_patient\n"
        "write_patient(replace(plan('tiny', 7)[0], side_um=2048), Path(sys.argv[1]))\n"
        "print(*[line for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[1]) / 1024 < 400
