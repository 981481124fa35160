"""Drafts of study files: recognised columns make a valid study, and nothing is invented for what is missing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from openpyxl import Workbook

from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.draft import biomarker, survival
from equipoise.platform.study.schema import Study

N = 24
GENES = [f"G{i}" for i in range(60)]


def clinical(key: str = "p{}") -> pd.DataFrame:
    """Labels, measurements and survival of ``N`` patients."""
    i = np.arange(N)
    return pd.DataFrame(
        {
            "PATIENT": [key.format(f"{j:04}") for j in i],
            "AGE": 40 + i,
            "sex": np.where(i % 2, "f", "m"),
            "MSI status": np.where(i % 4, "MSS", "MSI-H"),
            "LISS, total": i * 1.5,
            "OS_MONTHS": 3 * i + 1,
            "OS_EVENT": i % 2,
        }
    )


def matrix() -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(N, len(GENES))).round(3)
    return pd.DataFrame(values, columns=GENES).assign(PATIENT=clinical()["PATIENT"])


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    folder = tmp_path / "hospital"
    folder.mkdir()
    return folder


def draft(folder: Path | None, kind: Callable[[Path | None, Path], str] = biomarker) -> tuple[str, Path]:
    file = (folder.parent if folder else Path()) / "study.yaml"
    return kind(folder, file), file


def study(folder: Path, kind: Callable[[Path | None, Path], str] = biomarker) -> Study:
    text, file = draft(folder, kind)
    file.write_text(text, encoding="utf-8")
    return load_study(file)


@pytest.mark.parametrize("kind", [biomarker, survival])
def test_without_tables_the_template_is_valid(tmp_path: Path, kind: Callable) -> None:
    (tmp_path / "study.yaml").write_text(kind(None, tmp_path / "study.yaml"))
    drafted = load_study(tmp_path / "study.yaml")
    assert (drafted.cohorts[0].site.scheme, drafted.splits.scheme) == ("cohort", "kfold")
    assert "# omics: {rna: rna.parquet}" in (tmp_path / "study.yaml").read_text()


@pytest.mark.parametrize("kind", [biomarker, survival])
def test_the_drafted_study_reads_its_tables(hospital: Path, kind: Callable) -> None:
    from equipoise.datasets.cohorts.cohort import load_cohorts

    clinical().to_csv(hospital / "clini.csv", index=False)
    drafted = study(hospital, kind)
    names = [task.name for task in drafted.tasks]
    assert names == (["MSI_status", "LISS__total"] if kind is biomarker else ["OS_EVENT"])
    assert len(load_cohorts(drafted.cohorts, drafted.tasks, drafted.columns, drafted.base).patients) == N


def test_age_and_sex_are_offered_not_chosen(hospital: Path) -> None:
    clinical().to_csv(hospital / "clini.csv", index=False)
    text, _ = draft(hospital)
    for column in ("sex", "AGE"):
        assert next(line for line in text.splitlines() if f"column: {column}" in line).startswith("  # - {")


@pytest.mark.parametrize(
    ("key", "site", "scheme", "folds"),
    [
        ("p{}", "cohort", "kfold", 5),
        ("TCGA-AA-{}", "tss", "kfold", 5),  # one hospital
        ("TCGA-{0[3]}A-{0}", "tss", "site_preserved", 5),
    ],
)
def test_sites_are_preserved_where_barcodes_name_several(
    hospital: Path, key: str, site: str, scheme: str, folds: int
) -> None:
    clinical(key).to_csv(hospital / "clini.csv", index=False)
    drafted = study(hospital)
    assert (drafted.cohorts[0].site.scheme, drafted.splits.scheme, drafted.splits.folds) == (
        site,
        scheme,
        folds,
    )


def test_there_are_no_more_folds_than_sites(hospital: Path) -> None:
    table = clinical()
    table["PATIENT"] = [f"TCGA-S{i % 3}-{i:04}" for i in range(N)]
    table.to_csv(hospital / "clini.csv", index=False)
    assert study(hospital).splits.folds == 3


def test_a_wide_table_of_numbers_is_omics(hospital: Path) -> None:
    clinical().to_csv(hospital / "zz_clini.csv", index=False)
    matrix().to_csv(hospital / "rna_seq.csv", index=False)
    matrix().set_index("PATIENT").rename_axis(None).to_csv(hospital / "cnv.csv")
    text, _ = draft(hospital)
    assert study(hospital).cohorts[0].clinical.path == "hospital/zz_clini.csv"
    assert "    # omics: {rna: hospital/rna_seq.csv}" in text
    assert "    # omics: {cnv: hospital/cnv.csv}" in text
    with_omics = text.replace("# omics: {rna:", "omics: {rna:")
    assert yaml.safe_load(with_omics)["cohorts"][0]["omics"] == {"rna": "hospital/rna_seq.csv"}


def test_labels_make_a_clinical_table_not_the_number_of_columns(hospital: Path) -> None:
    clinical()[["PATIENT", "MSI status"]].to_csv(hospital / "z_labels.csv", index=False)
    matrix()[["PATIENT", *GENES[:10]]].to_csv(hospital / "a_scores.csv", index=False)
    assert study(hospital).cohorts[0].clinical.path == "hospital/z_labels.csv"


def test_only_matrices_are_no_clinical_table(hospital: Path) -> None:
    matrix().to_csv(hospital / "rna.csv", index=False)
    with pytest.raises(DataError, match=r"no clinical table .* only matrices: \{rna: hospital/rna.csv\}"):
        draft(hospital)


def two_sheets(path: Path) -> None:
    book = Workbook()
    sheet = book.create_sheet("Data", 0)
    sheet.append(["PATIENT", "MSI"])
    del book["Sheet"]
    book.create_sheet("Legend").append(["x"])
    book.save(path)


def test_a_table_that_cannot_be_read_is_a_comment(hospital: Path) -> None:
    two_sheets(hospital / "a.xlsx")
    (hospital / "~$a.xlsx").write_bytes(b"a lock file")
    (hospital / "codes.csv").write_text("code,name\n1,x\n")
    clinical().to_csv(hospital / "clini.csv", index=False)
    text, _ = draft(hospital)
    remarks = [line.strip() for line in text.splitlines() if line.strip().startswith("# hospital/")]
    assert remarks == [
        "# hospital/a.xlsx was not read: the workbook has 2 sheets: 'Data', 'Legend'; say which one: sheet: Data",
        "# hospital/codes.csv was not used: no patient column (PATIENT or case_id) among code, name",
    ]
    assert study(hospital).main_task.name == "MSI_status"


def test_an_unread_workbook_alone_becomes_the_clinical_table_to_complete(hospital: Path) -> None:
    two_sheets(hospital / "a.xlsx")
    text, _ = draft(hospital)
    assert "was not read: the workbook has 2 sheets" in text
    assert yaml.safe_load(text)["cohorts"][0]["clinical"] == "hospital/a.xlsx"
    assert yaml.safe_load(text)["tasks"] is None


@pytest.mark.parametrize("kind", [biomarker, survival])
def test_no_task_is_invented(hospital: Path, kind: Callable) -> None:
    clinical()[["PATIENT", "AGE", "sex", "LISS, total"]].to_csv(hospital / "clini.csv", index=False)
    text, _ = draft(hospital, kind)
    assert "  # no label column was recognised: fill in a task\n  # - {name:" in text
    assert yaml.safe_load(text)["tasks"] is None
    with pytest.raises(StudyError, match="tasks"):
        study(hospital, kind)


def test_odd_names_stay_valid(hospital: Path) -> None:
    table = clinical()[["PATIENT", "MSI status"]].rename(columns={"MSI status": "slide"})
    table["a b"] = table["a.b"] = table["a, b: {c}"] = np.where(np.arange(N) % 3, "no", "{yes}")
    table["1, 2"] = np.arange(N) * 0.5
    table.to_csv(hospital / "t #1, x.csv", index=False)
    drafted = study(hospital)
    assert drafted.cohorts[0].clinical.path == "hospital/t #1, x.csv"
    assert [task.name for task in drafted.tasks] == ["slide_2", "x1__2"]
    text, file = draft(hospital)
    active = text.replace("  # - {name: a", "  - {name: a").replace("  # - {name: OS", "  # {name: OS")
    file.write_text(active)
    tasks = load_study(file).tasks
    assert [task.name for task in tasks] == ["slide_2", "x1__2", "a_b", "a_b_2", "a__b___c"]
    assert [task.columns for task in tasks[2:]] == [("a b",), ("a.b",), ("a, b: {c}",)]
    assert tasks[2].positive == ["{yes}"]  # type: ignore[union-attr]


def test_many_columns_are_not_all_listed(hospital: Path) -> None:
    table = matrix().assign(label=np.where(np.arange(N) % 3, "x", "y"))
    table.to_csv(hospital / "porpoise.csv", index=False)
    text, _ = draft(hospital)
    assert text.count("type: regression") == 5 + 20
    assert "  # … and 36 more columns" in text
    assert len(study(hospital).tasks) == 6


def test_tiles_of_a_bag_are_a_setting_to_uncomment(hospital: Path) -> None:
    clinical().to_csv(hospital / "clini.csv", index=False)
    assert study(hospital).training.bag_tiles is None
    text, file = draft(hospital)
    file.write_text(text.replace("# bag_tiles", "bag_tiles"))
    assert load_study(file).training.bag_tiles == 512


@pytest.mark.parametrize("ending", ["zip", "gz"])
def test_compressed_tables_are_read(hospital: Path, ending: str) -> None:
    clinical().to_csv(hospital / f"clinical.csv.{ending}", index=False)
    (hospital / "slides.zip").write_bytes(b"no table")
    drafted = study(hospital)
    assert drafted.cohorts[0].clinical.path == f"hospital/clinical.csv.{ending}"
    assert drafted.main_task.name == "MSI_status"


def test_the_columns_that_were_found_are_named_where_none_is_a_patient(hospital: Path) -> None:
    clinical().rename(columns={"PATIENT": "pid"}).to_csv(hospital / "brca.csv", index=False)
    with pytest.raises(DataError, match=r"no clinical table .*\n.*brca\.csv was not used: .* among pid, AGE"):
        draft(hospital)


def test_row_numbers_and_censoring_are_no_targets(hospital: Path) -> None:
    clinical().assign(censorship=np.arange(N) % 2).to_csv(hospital / "clinical.csv")  # with the index
    names = [task.column for task in study(hospital).tasks if task.type != "survival"]
    assert names == ["MSI status", "LISS, total"]
    assert "censorship" not in draft(hospital)[0]
