"""The preset of five cancers: organs differ in expression, classes are common to all, others keep their bytes."""

import hashlib
from collections import Counter

import numpy as np
import yaml

from equipoise.datasets.synthetic.cancers import CANCERS
from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME
from equipoise.datasets.synthetic.genes import PANEL, PROGRAMMES
from equipoise.datasets.synthetic.omics import draw_organ_profiles, draw_profiles
from equipoise.datasets.synthetic.params import Knobs
from equipoise.datasets.synthetic.seeds import WHOLE_COHORT, Purpose, stream
from equipoise.datasets.synthetic.study_text import study_yaml
from equipoise.datasets.synthetic.tables import build_tables

PRESET = PRESETS_BY_NAME["pancancer"]


def test_every_cancer_has_every_class_and_one_is_held_out():
    for cohort in PRESET.cohorts:
        of = CANCERS[cohort.style.cancer]
        assert set(of.consensus) == set(of.subtypes)
        assert set(of.consensus.values()) == {"inflamed", "proliferative", "quiescent"}
        assert set(of.programmes) <= set(PROGRAMMES)
    assert Counter(cohort.role for cohort in PRESET.cohorts) == {"develop": 4, "external": 1}
    assert len({cohort.style.cancer for cohort in PRESET.cohorts}) == 5
    task = yaml.safe_load(study_yaml(PRESET, 7))["tasks"][0]
    merged = {name: common for of in CANCERS.values() for name, common in of.consensus.items()}
    assert task["classes"] == merged


def test_organs_shift_expression_only_where_they_are_asked_to():
    plain = draw_profiles(stream(7, 0, WHOLE_COHORT, Purpose.PROFILES))
    np.testing.assert_array_equal(draw_organ_profiles(7, "crc", Knobs()).log_mean, plain.log_mean)
    crc, ov = (
        draw_organ_profiles(7, cancer, Knobs(organ=0.5)).log_mean - plain.log_mean for cancer in ("crc", "ov")
    )
    planted = {gene for name in ("WNT", "DIFF", "HRD", "HYPOXIA") for gene in PROGRAMMES[name]}
    others = [k for k, gene in enumerate(PANEL) if gene not in planted]
    assert abs(crc[0, others].std() - 0.5) < 0.03
    assert abs(np.corrcoef(crc[0, others], ov[0, others])[0, 1]) < 0.1  # 3.3 standard errors
    wnt = [PANEL.index(gene) for gene in PROGRAMMES["WNT"]]
    tumour_minus_fibroblast = crc[0, wnt] - crc[2, wnt]  # programmes of tumours act in their cells alone
    np.testing.assert_allclose(
        tumour_minus_fibroblast, 0.5 * 2.0 * plain.loading[list(PROGRAMMES).index("WNT"), wnt]
    )


def test_patients_without_rna_are_there_and_other_presets_are_as_before():
    tables = build_tables(PRESET.cohorts[0], PRESET.knobs, 7)
    assert 0.05 < 1 - len(tables.omics["rna"]) / len(tables.clinical) < 0.2
    assert len(tables.slides) == len(tables.clinical)  # everybody has a slide
    tiny = PRESETS_BY_NAME["tiny"]
    text = "".join(build_tables(cohort, tiny.knobs, 7).omics["rna"].to_csv() for cohort in tiny.cohorts)
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "99b38c391bc48f77f4728e8414987dbd8e1d50e34eca5c670322e3591da9a38f"
    )
