import re

import numpy as np
import pytest

from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME, SITES
from equipoise.datasets.synthetic.latents import assign_states, draw_latents, observe
from equipoise.datasets.synthetic.params import CohortPlan, Knobs
from equipoise.datasets.synthetic.patients import draw_patients

CRC = CohortPlan(name="syn-crc-a", patients=400, side_um=640, style=SITES["syn-crc-a"])


def test_barcodes_follow_tcga():
    assert len(PRESETS_BY_NAME) > 0
    for preset in PRESETS_BY_NAME.values():
        patients = [p for cohort in preset.cohorts for p in draw_patients(cohort, preset.knobs, 7)]
        assert len({p.barcode for p in patients}) == len(patients)
        assert len(patients) > 0
        for patient in patients:
            assert re.fullmatch(r"SYN-[A-Z][1-4]-[A-Z]{2}\d{3}", patient.barcode)
            assert len(patient.barcode) == 12  # as long as TCGA's, for readers that cut instead of parse
            assert re.fullmatch(re.escape(patient.barcode) + r"-01Z-00-DX1", patient.slide(0))


@pytest.mark.parametrize("seed", range(6))
def test_two_patients_of_each_class_are_usable_in_every_small_cohort(seed):
    harsh = Knobs(missing_slide=0.5, missing_label=0.5)
    for preset, knobs in (
        (PRESETS_BY_NAME["tiny"], PRESETS_BY_NAME["tiny"].knobs),
        (PRESETS_BY_NAME["quick"], harsh),
    ):
        assert len(preset.cohorts) > 0
        for cohort in preset.cohorts:
            usable = [p for p in draw_patients(cohort, knobs, seed) if "slide" not in p.missing]
            for label, state in (("MSI", "msi"), ("HRD", "hrd")):
                values = [getattr(p.latents, state) for p in usable if label not in p.missing]
                assert min(sum(values), len(values) - sum(values)) >= 2


def test_prevalence_is_exact_and_hrd_avoids_msi():
    overlap = []
    for seed in range(40):
        msi, hrd = assign_states(np.random.default_rng(seed), 100, SITES["syn-crc-a"])
        assert (msi.sum(), hrd.sum()) == (16, 15)
        overlap.append((msi & hrd).sum())
    assert 0.2 < np.mean(overlap) < 1.2  # independence would give 2.4, the fivefold lower odds 0.55


def test_a_patient_does_not_depend_on_the_others():
    few = CRC.model_copy(update={"patients": 100})
    big, small = draw_patients(CRC, Knobs(), 7), draw_patients(few, Knobs(), 7)
    same = [
        k
        for k in range(100)
        if big[k].latents.msi == small[k].latents.msi and big[k].latents.hrd == small[k].latents.hrd
    ]
    assert len(same) > 40
    assert all(big[k] == small[k] for k in same)


def test_missingness_is_near_its_knobs():
    patients = draw_patients(CRC, Knobs(), 7)
    for name, probability in (("slide", 0.04), ("rna", 0.08), ("MSI", 0.10), ("OS", 0.10), ("LISS", 0.08)):
        share = np.mean([name in p.missing for p in patients])
        assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / 400), name


def test_latents_carry_the_planted_effects():
    style, knobs = SITES["syn-crc-a"], Knobs()
    rng = np.random.default_rng(0)
    states = rng.random(1500) < style.p_msi
    latents = [draw_latents(rng, msi=bool(m), hrd=False, style=style, knobs=knobs) for m in states]
    immune = np.array([x.immune for x in latents])
    assert np.corrcoef(immune, states)[0, 1] == pytest.approx(0.52, abs=0.08)
    assert np.corrcoef([x.image_only for x in latents], [x.omics_only for x in latents])[
        0, 1
    ] == pytest.approx(0, abs=0.1)
    views = np.array([observe(rng, x, 0.9)["immune"] for x in latents])
    assert np.corrcoef(views, immune)[0, 1] == pytest.approx(0.9, abs=0.04)
    assert observe(rng, latents[0], 1.0)["immune"] == latents[0].immune


def test_a_site_that_never_sequenced_has_no_expression():
    cohort = next(c for c in PRESETS_BY_NAME["demo"].cohorts if c.style.no_rna_sources)
    patients = draw_patients(cohort.model_copy(update={"patients": 100}), Knobs(missing_rna=0), 7)
    assert {p.source for p in patients if "rna" in p.missing} == set(cohort.style.no_rna_sources)
    assert {p.source for p in patients if "rna" not in p.missing} == {1, 2, 3, 4} - set(
        cohort.style.no_rna_sources
    )
