"""Public tables as they are: TCGA and CPTAC labels, PORPOISE's slide tables, the TCGA sites of breast cancer."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import TypeAdapter

from equipoise.datasets.cohorts.cohort import Cohorts, load_cohorts
from equipoise.datasets.cohorts.leakage import leakage_audit, split_warnings
from equipoise.datasets.cohorts.preserved_sites import assign_sites, howard_objective, objective, site_counts
from equipoise.datasets.cohorts.sites import read_institutions, tss_code
from equipoise.datasets.cohorts.splits import Fold, SplitScheme, make_folds, site_preserved
from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.matrix import read_matrix
from equipoise.datasets.params import CohortSource, OmicsSource, SitePreservedParams, TableSource
from equipoise.datasets.tables.reading import read_table
from equipoise.datasets.tables.targets import encode
from equipoise.datasets.tables.tasks import Task

pytestmark = pytest.mark.real
TASK = TypeAdapter(Task)
PORPOISE = "tcga/porpoise/tcga_{}_all_clean.csv.zip"


@pytest.fixture(scope="module")
def example(root_folder: Path) -> dict[str, Any]:
    return yaml.safe_load((root_folder / "examples" / "real_labels.yaml").read_text())


@pytest.fixture(scope="module")
def root_folder(shared_data: Path) -> Path:
    return Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def crc(example: dict[str, Any], root_folder: Path) -> Cohorts:
    sources = [CohortSource.model_validate(cohort) for cohort in example["cohorts"]]
    tasks = [TASK.validate_python(task) for task in example["tasks"]]
    return load_cohorts(sources, tasks, None, root_folder / "examples")


@pytest.fixture(scope="module")
def folds(crc: Cohorts, example: dict[str, Any]) -> list[Fold]:
    options = dict(example["splits"])
    assert options.pop("scheme") == "site_preserved"
    params = SitePreservedParams.model_validate(options)
    return make_folds(crc.patients, SplitScheme(site_preserved, params), crc.tasks, example["seed"])


def test_two_cohorts_with_their_msi(crc: Cohorts) -> None:
    counts = crc.patients.groupby("cohort")["MSI"].value_counts(dropna=False).to_dict()
    assert counts.pop(("TCGA-CRC", 1.0)) == 65
    assert counts.pop(("TCGA-CRC", 0.0)) == 318 + 74
    assert counts.pop(("CPTAC-COAD", 1.0)) == 24
    assert counts.pop(("CPTAC-COAD", 0.0)) == 81
    assert list(counts.values()) == [2]  # two patients with the literal text NA
    assert crc.patients["cohort"].value_counts().to_dict() == {"TCGA-CRC": 459, "CPTAC-COAD": 105}
    assert crc.patients.loc[crc.patients["cohort"] == "TCGA-CRC", "LF"].between(0.008, 0.672).all()


def test_flow_and_exclusions(crc: Cohorts) -> None:
    flow = {(row["cohort"], row["stage"]): row["patients"] for row in crc.flow}
    assert flow == {
        ("TCGA-CRC", "in table"): 459,
        ("TCGA-CRC", "unique"): 459,
        ("TCGA-CRC", "has label"): 459,
        ("CPTAC-COAD", "in table"): 110,
        ("CPTAC-COAD", "unique"): 110,
        ("CPTAC-COAD", "has label"): 105,
    }
    assert len(crc.exclusions) == 5
    assert crc.exclusions["reason"].str.contains("'NA' counts as missing").all()
    assert any("CPTAC-COAD has no column 'Leukocyte Fraction'" in note for note in crc.notes)
    assert crc.patients["patient"].str.match(r"^(TCGA-|\d\dCO\d\d\d$)").all()  # 01CO001 keeps its zero


def test_site_preserved_folds(crc: Cohorts, folds: list[Fold]) -> None:
    audit = leakage_audit(folds, crc.patients, preserve_sites=True)
    assert audit["ok"].all()
    assert set(audit["check"]) == {"patient", "site", "external patient"}
    msi = crc.patients.set_index("patient")["MSI"]
    positives = [int((msi[list(fold.test)] == 1).sum()) for fold in folds]
    assert sum(positives) == 65
    assert (
        min(positives) >= 12
    )  # 41 % of these patients come from one institution in larger series, 28 % here
    remarks = split_warnings(folds, crc.patients, crc.tasks, SitePreservedParams(folds=5))
    assert any("'Indivumed' holds 28%" in remark for remark in remarks)


def test_msi_low_must_be_decided(example: dict[str, Any], root_folder: Path) -> None:
    task = {"name": "MSI", "type": "binary", "column": "MSI Status", "positive": "MSI-H"}
    source = CohortSource.model_validate(example["cohorts"][0])
    with pytest.raises(
        DataError, match=r"values 'MSI-L', 'MSS' are neither.*MSS 318, MSI-L 74, MSI-H 65, NA 2"
    ):
        load_cohorts([source], [TASK.validate_python(task)], None, root_folder / "examples")


@pytest.fixture(scope="module")
def cptac(shared_data: Path) -> pd.DataFrame:
    table = read_table(TableSource(path="labels/CPTAC_CLINI_Data.xlsx"), shared_data)
    return table.set_index("Sample ID")


@pytest.mark.parametrize(
    ("study", "column"),
    [
        ("coad_cptac_2019", "TMB (nonsynonymous)"),
        ("luad_cptac_2020", "ESTIMATE immune score5"),
        ("luad_cptac_2020", "ESTIMATE stromal score6"),
        ("brca_cptac_2020", "ESTIMATE Immune Score"),
        ("lusc_cptac_2021", "ESTIMATE immune score8"),
        ("ucec_cptac_2020", "ESTIMATE ESTIMATE Score"),
        ("brca_cptac_2020", "AGE"),
    ],
)
def test_lost_decimal_points_are_refused(cptac: pd.DataFrame, study: str, column: str) -> None:
    part = cptac[cptac["Study ID"] == study]
    task = {"name": "T", "type": "regression", "column": column}
    with pytest.raises(DataError, match="lost their decimal points|without their decimal points"):
        encode(TASK.validate_python(task), part)
    assert encode(TASK.validate_python(task | {"allow_wide_range": True}), part).known.sum() > 60


@pytest.mark.parametrize(
    ("study", "column", "known"),
    [
        ("luad_cptac_2020", "Tumor Purity", 109),
        ("luad_cptac_2020", "TSNet Purity", 110),
        ("brca_cptac_2020", "ESTIMATE Tumor Purity", 122),
        ("brca_cptac_2020", "xCell Stromal Score", 122),
    ],
)
def test_sound_columns_pass(cptac: pd.DataFrame, study: str, column: str, known: int) -> None:
    task = TASK.validate_python({"name": "T", "type": "regression", "column": column})
    assert encode(task, cptac[cptac["Study ID"] == study]).known.sum() == known


def test_samples_that_contradict_leave_with_the_reason(cptac: pd.DataFrame, tmp_path: Path) -> None:
    cptac.reset_index().to_csv(tmp_path / "cptac.csv", index=False)
    source = CohortSource.model_validate(
        {
            "name": "CPTAC-brain",
            "role": "develop",
            "clinical": {"path": "cptac.csv", "where": {"Study ID": "brain_cptac_2020"}},
            "columns": {"patient": "Patient ID"},
        }
    )
    task = TASK.validate_python({"name": "Mutations", "type": "regression", "column": "Mutation Count"})
    cohorts = load_cohorts([source], [task], None, tmp_path)
    assert cohorts.flow[0]["patients"] == 199
    assert any("218 rows of the clinical table are 199 patients" in note for note in cohorts.notes)
    contradicting = cohorts.exclusions[cohorts.exclusions["stage"] == "unique"]
    assert 0 < len(contradicting) <= 19
    assert contradicting["reason"].str.contains("contradict in 'Mutation Count'").all()


def porpoise(shared_data: Path, cohort: str, **changes: Any) -> Cohorts:
    table = PORPOISE.format(cohort)
    source = {"name": cohort, "role": "develop", "clinical": table, "slides": table, "site": "tss"} | changes
    task = {
        "name": "OS",
        "type": "survival",
        "time": {"column": "survival_months", "unit": "months"},
        "event": {"column": "censorship", "event_value": 0},
    }
    return load_cohorts(
        [CohortSource.model_validate(source)], [TASK.validate_python(task)], None, shared_data
    )


def test_slide_tables_with_inverted_censorship(shared_data: Path) -> None:
    cohorts = porpoise(
        shared_data, "kirc", omics={"rna": {"path": PORPOISE.format("kirc"), "suffix": "_rnaseq"}}
    )
    assert len(cohorts.patients) == 345
    assert len(cohorts.slides) == 350
    assert any("read as CLAM/PORPOISE/SurvPath" in note for note in cohorts.notes)
    # 258 of 350 rows say censorship 1; read the wrong way round there would be three times the deaths.
    assert cohorts.patients["OS.event"].notna().all()
    assert 0 < cohorts.patients["OS.event"].sum() < 100
    assert cohorts.omics["rna"].index.is_unique
    assert (
        cohorts.omics["rna"].to_numpy(dtype=float)[~cohorts.omics["rna"].isna()].max() > 100
    )  # outliers: clip later
    missing_sex = TASK.validate_python(
        {"name": "sex", "type": "binary", "column": "is_female", "positive": 1}
    )
    table = read_table(TableSource(path=PORPOISE.format("kirc")), shared_data).drop_duplicates("case_id")
    encoded = encode(missing_sex, table.set_index("case_id"))
    assert [reason.text for reason in encoded.reasons.values()] == ["no value"]


def test_lost_leading_zeros_of_sites(shared_data: Path) -> None:
    cohorts = porpoise(shared_data, "luad", site={"column": "site"})
    note = next(note for note in cohorts.notes if "leading zeros" in note)
    assert "'5' for TCGA-05-4249" in note
    assert f"{cohorts.patients['cohort'].iloc[0]}:5" in set(cohorts.patients["site"])
    assert "05" in set(porpoise(shared_data, "luad").patients["site"])


@pytest.mark.parametrize(
    ("suffix", "shape"), [("_rnaseq", (569, 1544)), ("_cnv", (569, 30)), ("_mut", (569, 16))]
)
def test_one_table_three_modalities(shared_data: Path, suffix: str, shape: tuple[int, int]) -> None:
    matrix = read_matrix(OmicsSource(path=PORPOISE.format("gbmlgg"), suffix=suffix), shared_data)
    assert matrix.shape == shape
    assert not any(gene.endswith(suffix) for gene in matrix.columns)


@pytest.mark.parametrize("table", ["labels/tcga-institution-sites.csv", "fed/tcga_tss/tissueSourceSite.tsv"])
def test_site_tables(shared_data: Path, table: str) -> None:
    result = read_institutions(table, shared_data)
    assert result["NA"] == "Duke University"
    assert result["01"] == "International Genomics Consortium"
    assert len(result) in (830, 831)
    assert len({name.casefold() for name in result.values()}) == len(set(result.values()))


@pytest.fixture(scope="module")
def breast(shared_data: Path) -> tuple[list[str], np.ndarray]:
    table = pd.read_csv(shared_data / "fed/fed_tcga_brca/brca.csv", usecols=["pid", "E"])
    return table["pid"].map(tss_code).tolist(), table["E"].to_numpy(dtype=np.int64)


def test_three_folds_of_breast_cancer_reach_the_integer_optimum(breast: tuple[list[str], np.ndarray]) -> None:
    # scipy's milp proves 316/314/315 censored and 49/52/50 events to be the best three folds of these 40 sites.
    names, counts = site_counts(*breast)
    assert len(names) == 40
    result = assign_sites(counts, np.full(3, 1 / 3), np.random.default_rng(0))
    folds = sorted(tuple(counts[result == fold].sum(0).tolist()) for fold in range(3))
    assert folds == [(314, 52), (315, 50), (316, 49)]


@pytest.mark.parametrize("cohort", ["gbmlgg", "kirc", "kirp", "lusc"])
def test_folds_of_real_sites_beat_grouped_stratification(shared_data: Path, cohort: str) -> None:
    model_selection = pytest.importorskip("sklearn.model_selection")
    table = pd.read_csv(shared_data / PORPOISE.format(cohort), usecols=["case_id", "censorship"])
    table = table.drop_duplicates("case_id")
    sites = table["case_id"].map(tss_code).to_numpy()
    events = (1 - table["censorship"]).to_numpy(dtype=np.int64)
    names, counts = site_counts(sites, events)
    grouped = np.zeros(len(names), dtype=np.int64)
    splitter = model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for fold, (_, test) in enumerate(splitter.split(sites, events, sites)):
        grouped[np.searchsorted(names, sites[test].astype(str))] = fold
    shares = np.full(5, 0.2)
    result = assign_sites(counts, shares, np.random.default_rng(0))
    assert objective(result, counts, shares) < 0.7 * objective(grouped, counts, shares)
    assert howard_objective(result, counts, 5) < 0.7 * howard_objective(grouped, counts, 5)
