import re
from dataclasses import replace

import numpy as np
import openslide
import pandas as pd
import pytest
from pydantic import ValidationError

from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME, SITES
from equipoise.datasets.synthetic.faults import assign_faults
from equipoise.datasets.synthetic.generate import plan, write_patient, write_tables
from equipoise.datasets.synthetic.jobs import SlidePlan
from equipoise.datasets.synthetic.params import SLIDE_FAULTS, CohortPlan, FaultName
from equipoise.datasets.synthetic.patients import draw_patients
from equipoise.datasets.synthetic.tables import CohortTables, build_tables


def _slide(fault: FaultName | None, root) -> str:
    job = plan("tiny", 7)[2]
    job = replace(job, slides=(SlidePlan(job.slides[0].barcode, 0, fault),))
    return str(root / write_patient(job, root)["files"][0])


def _crc(index: int) -> CohortTables:
    cohort = PRESETS_BY_NAME["faults"].cohorts[index]
    return build_tables(cohort, PRESETS_BY_NAME["faults"].knobs, 7)


def test_headers_without_or_with_absurd_resolution(tmp_path):
    with openslide.OpenSlide(_slide("no_mpp", tmp_path / "a")) as slide:
        assert not {"openslide.mpp-x", "openslide.objective-power", "aperio.MPP"} & set(slide.properties)
    with openslide.OpenSlide(_slide("absurd_mpp", tmp_path / "b")) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.005)


def test_missing_and_corrupt_tiles_are_where_the_tissue_is(tmp_path):
    with openslide.OpenSlide(_slide("missing_tile", tmp_path / "a")) as slide:
        assert np.asarray(slide.read_region((512, 512), 0, (256, 256))).max() == 0  # transparent
        assert np.asarray(slide.read_region((256, 512), 0, (256, 256)))[..., 3].min() == 255
    path = _slide("corrupt_tile", tmp_path / "b")
    with openslide.OpenSlide(path) as slide:
        slide.read_region((0, 0), 0, (256, 256))
        with pytest.raises(openslide.OpenSlideError):
            slide.read_region((512, 512), 0, (256, 256))


def test_truncated_and_blank(tmp_path):
    with pytest.raises(openslide.OpenSlideUnsupportedFormatError):
        openslide.OpenSlide(_slide("truncated", tmp_path / "a"))
    with openslide.OpenSlide(_slide("blank", tmp_path / "b")) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB"))
        assert pixels.std(axis=(0, 1)).max() < 1
        assert pixels.min() > 230


def test_a_fault_leaves_the_pixels_of_other_faults_alone(tmp_path):
    with (
        openslide.OpenSlide(_slide(None, tmp_path / "a")) as sound,
        openslide.OpenSlide(_slide("no_mpp", tmp_path / "b")) as faulty,
    ):
        regions = [np.asarray(slide.read_region((512, 512), 0, (256, 256))) for slide in (sound, faulty)]
    assert np.array_equal(*regions)


def test_every_slide_fault_happens_once_and_is_on_record():
    tables = _crc(0)
    record = dict(zip(tables.faults.FAULT, tables.faults.PATIENT, strict=True))
    assert set(SLIDE_FAULTS) < set(record)
    jobs = {job.patient: job for job in plan("faults", 7)}
    for fault in set(SLIDE_FAULTS) - {"two_slides"}:
        assert [slide.fault for slide in jobs[record[fault]].slides] == [fault]
    slides = jobs[record["two_slides"]].slides
    assert [re.sub(r".*(DX\d)$", r"\1", slide.barcode) for slide in slides] == ["DX1", "DX2"]
    assert (record["two_slides"] == tables.slides.PATIENT).sum() == 2


def test_a_duplicate_patient_contradicts_itself():
    tables = _crc(0)
    patient = tables.faults.PATIENT[tables.faults.FAULT == "duplicate_patient"].item()
    rows = tables.clinical[patient == tables.clinical.PATIENT]
    assert len(rows) == 2
    assert rows.LISS.nunique() == 2
    assert len(tables.clinical) == PRESETS_BY_NAME["faults"].cohorts[0].patients + 1


def test_swapped_labels_exchange_one_of_each_class():
    tables = _crc(0)
    pair = tables.faults.PATIENT[tables.faults.FAULT == "swapped_labels"]
    assert len(pair) == 2
    clinical = tables.clinical.drop_duplicates("PATIENT").set_index("PATIENT").MSI
    truth = tables.truth.set_index("PATIENT").label_MSI
    wrong = clinical.index[(clinical != truth[clinical.index]) & (clinical != "")]
    assert set(wrong) == set(pair)
    assert sorted(clinical[pair]) == ["MSI-H", "MSS"]


def test_a_poisoned_site_turns_its_labels_round_and_no_others():
    tables = _crc(1)
    poisoned = tables.faults.PATIENT[tables.faults.FAULT == "poisoned_site"]
    assert poisoned.str.startswith("SYN-T1-").all()
    assert set(poisoned) == {p for p in tables.clinical.PATIENT if p.startswith("SYN-T1-")}
    clinical, truth = (table.set_index("PATIENT") for table in (tables.clinical, tables.truth))
    known = clinical.MSI != ""
    flipped = clinical.index[known & (truth.label_MSI != clinical.MSI)]
    assert set(flipped) == set(clinical.index[known]) & set(poisoned)
    clean = CohortPlan(**{**dict(PRESETS_BY_NAME["faults"].cohorts[1]), "faults": ()})
    before = build_tables(clean, PRESETS_BY_NAME["faults"].knobs, 7).clinical.set_index("PATIENT")
    score = clinical.LISS != ""
    values = pd.DataFrame(
        {"before": before.LISS[score].astype(float), "after": clinical.LISS[score].astype(float)}
    )
    hit = values.index.isin(poisoned)
    assert np.allclose(values[hit].sum(axis=1), 2 * values.before.mean(), atol=1e-3)
    assert (values[~hit].before == values[~hit].after).all()


def test_faults_reach_the_disk_as_truth(tmp_path):
    write_tables("faults", 7, tmp_path)
    assert len(PRESETS_BY_NAME["faults"].cohorts) > 0
    for cohort in PRESETS_BY_NAME["faults"].cohorts:
        record = pd.read_csv(tmp_path / cohort.name / "truth" / "faults.csv")
        assert set(record.FAULT) == set(cohort.faults)


def test_impossible_requests_are_refused():
    with pytest.raises(ValidationError, match="Aperio"):
        CohortPlan(name="syn-x", patients=8, side_um=640, style=SITES["syn-luad-a"], faults=("truncated",))
    few = CohortPlan(name="syn-crc-a", patients=5, side_um=640, style=SITES["syn-crc-a"])
    with pytest.raises(ValueError, match="7 faults do not fit"):
        assign_faults(SLIDE_FAULTS, draw_patients(few, PRESETS_BY_NAME["tiny"].knobs, 7))
