import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME, SITES
from equipoise.datasets.synthetic.genes import MARKERS, PANEL, PANEL_SIZE, PROGRAMMES
from equipoise.datasets.synthetic.omics import ARMS
from equipoise.datasets.synthetic.params import CohortPlan, Knobs
from equipoise.datasets.synthetic.tables import CohortTables, build_tables, institution_table, write_cohort

COHORT = CohortPlan(name="syn-crc-a", patients=500, side_um=640, style=SITES["syn-crc-a"])


@pytest.fixture(scope="module")
def tables() -> CohortTables:
    return build_tables(COHORT, Knobs(), 3)


@pytest.fixture(scope="module")
def truth(tables: CohortTables) -> pd.DataFrame:
    return tables.truth.set_index("PATIENT")


@pytest.fixture(scope="module")
def log_rna(tables: CohortTables) -> pd.DataFrame:
    counts = tables.omics["rna"].set_index("PATIENT")
    return np.log1p(counts.div(counts.sum(axis=1), axis=0) * 1e6)


def test_panel_is_complete_and_without_duplicates():
    assert len(PANEL) == len(set(PANEL)) == PANEL_SIZE
    planted = [gene for group in (MARKERS, PROGRAMMES) for genes in group.values() for gene in genes]
    assert len(set(planted)) == len(planted)  # no gene serves two purposes
    assert set(planted) < set(PANEL)
    assert len(ARMS) == 39


def test_scores_measure_the_latents(truth):
    for label, latent in (
        ("LISS", "immune"),
        ("LF", "immune"),
        ("SF", "stroma"),
        ("Prolif", "proliferation"),
        ("ITH", "heterogeneity"),
    ):
        assert truth[f"label_{label}"].corr(truth[latent], method="spearman") > 0.75, label
    assert roc_auc_score(truth.hrd, truth.label_HRD_SCORE) > 0.95
    assert ((truth.label_MSI == "MSI-H") == truth.msi).all()


def test_halves_puts_half_of_the_hazard_into_each_modality():
    preset = PRESETS_BY_NAME["halves"]
    (cohort,) = preset.cohorts
    tables = build_tables(cohort.model_copy(update={"patients": 900}), preset.knobs, 5)
    truth = tables.truth.set_index("PATIENT")
    parts = ["image_only", "omics_only", "label_AGE"]
    rows = np.column_stack([truth[parts], np.ones(len(truth))])
    weights, unexplained, *_ = np.linalg.lstsq(rows, truth["log_hazard"], rcond=None)
    np.testing.assert_allclose(weights[:3], [2.5, 2.5, 0.02], rtol=1e-9)
    assert unexplained.max() < 1e-18  # nothing else is in the hazard
    # Neither modality sees the other half.
    counts = tables.omics["rna"].set_index("PATIENT")
    log_rna = np.log1p(counts.div(counts.sum(axis=1), axis=0) * 1e6)
    seen = log_rna[list(PROGRAMMES["EMT"])].mean(axis=1)
    assert seen.corr(truth["omics_only"]) > 0.7
    assert abs(seen.corr(truth["image_only"])) < 0.12  # 3.4 standard errors
    assert truth["morphology_epi_um"].corr(truth["image_only"], method="spearman") < -0.9
    assert abs(truth["morphology_epi_um"].corr(truth["omics_only"])) < 0.12
    assert 0.07 < 1 - len(counts) / len(truth) < 0.13  # patients without RNA


def test_survival_has_its_three_sources(truth):
    def c(risk: pd.Series) -> float:
        return concordance_index(truth.label_OS_DAYS, -risk, truth.label_OS_EVENT)

    assert 0.25 < truth.label_OS_EVENT.mean() < 0.45
    assert 0.76 < c(truth.log_hazard) < 0.87
    assert min(c(truth.hazard_shared), c(truth.omics_only), c(truth.image_only)) > 0.55
    assert c(truth.log_hazard) > max(c(truth.hazard_shared), c(truth.omics_only), c(truth.image_only)) + 0.03


def test_omics_show_what_was_planted(tables, truth, log_rna):
    known = truth.loc[log_rna.index]
    assert 0.68 < roc_auc_score(known.msi, -log_rna.MLH1) < 0.92
    assert known.immune.corr(log_rna[list(MARKERS["cd8"])].mean(axis=1)) > 0.5
    assert known.stroma.corr(log_rna[list(MARKERS["fibroblast"])].mean(axis=1)) > 0.4
    assert known.omics_only.corr(log_rna[list(PROGRAMMES["EMT"])].mean(axis=1)) > 0.5
    assert abs(known.image_only.corr(log_rna[list(PROGRAMMES["EMT"])].mean(axis=1))) < 0.2
    mutation, cnv = (tables.omics[name].set_index("PATIENT") for name in ("mutation", "cnv"))
    assert roc_auc_score(truth.msi, mutation.TMB) > 0.9
    assert roc_auc_score(truth.hrd, (cnv.abs() > 0.25).sum(axis=1)) > 0.75
    assert set(np.unique(mutation.drop(columns="TMB"))) == {0.0, 1.0}


def test_slides_show_what_was_planted(truth):
    assert truth.immune.corr(np.log(truth.morphology_til_epi)) > 0.8
    assert truth.stroma.corr(truth.morphology_stroma) > 0.8
    assert truth.image_only.corr(truth.morphology_epi_um) < -0.8
    assert abs(truth.omics_only.corr(truth.morphology_epi_um)) < 0.2
    assert roc_auc_score(truth.msi, truth.morphology_til_epi) > 0.7


def test_counts_are_overdispersed_integers_of_the_stated_depth(tables):
    counts = tables.omics["rna"].set_index("PATIENT")
    assert (counts.dtypes == np.int32).all()
    depth = counts.sum(axis=1)
    assert 1.7e6 < depth.median() < 2.3e6
    assert 0.25 < np.log(depth).std() < 0.45
    housekeeping = counts[["RPL3", "RPS9", "PSMA1"]].div(depth, axis=0)
    assert (housekeeping.std() / housekeeping.mean() > 0.1).all()


def test_missing_cells_are_empty_and_missing_modalities_have_no_row(tables):
    clinical = tables.clinical
    assert len(clinical) == 500
    assert clinical.map(lambda cell: isinstance(cell, str)).all(axis=None)
    assert ((clinical.OS_DAYS == "") == (clinical.OS_EVENT == "")).all()
    assert 0.05 < (clinical.MSI == "").mean() < 0.15
    assert 0.01 < 1 - len(tables.slides) / 500 < 0.08
    assert 0.04 < 1 - len(tables.omics["rna"]) / 500 < 0.13
    assert len(tables.omics["cnv"]) == len(tables.omics["mutation"]) == 500


def test_tables_of_a_patient_do_not_depend_on_other_cohorts_or_on_the_run(tables):
    again = build_tables(COHORT, Knobs(), 3)
    pd.testing.assert_frame_equal(again.clinical, tables.clinical)
    pd.testing.assert_frame_equal(again.omics["rna"], tables.omics["rna"])
    other = build_tables(COHORT, Knobs(), 4)
    assert not other.clinical.LISS.equals(tables.clinical.LISS)


def test_a_cohort_without_any_expression_has_an_empty_table(tmp_path):
    small = COHORT.model_copy(update={"patients": 6})
    tables = build_tables(small, Knobs(missing_rna=1.0), 3)
    write_cohort(tables, tmp_path)
    assert pd.read_parquet(tmp_path / "omics" / "rna.parquet").shape == (0, PANEL_SIZE + 1)


def test_institutions_cover_every_source_site():
    rows = [line.split(";") for line in institution_table(PRESETS_BY_NAME["quick"]).splitlines()]
    assert rows[0] == ["TSS Code", "Source Site", "Study Name", "BCR"]
    assert {row[0] for row in rows[1:]} == {f"{letter}{k}" for letter in "ST" for k in range(1, 5)}
    assert all("SYNTHETIC" in row[1] for row in rows[1:])
