"""Drafts of study files: recognised columns make a valid study, and nothing is invented for what is missing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.params import TableSource
from equipoise.datasets.tables.tasks import BinaryTask, SurvivalTask
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.run.context import read_cohorts
from equipoise.platform.run.loading import check_draft, load_study
from equipoise.platform.study.draft import biomarker, survival
from equipoise.platform.study.schema import Study
from equipoise.platform.study.table_scan import Hints

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
    assert names == (["MSI_status", "LISS__total"] if kind is biomarker else ["OS"])
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
    matrix().set_index("PATIENT").T.rename_axis("Hugo_Symbol").to_csv(hospital / "mut.tsv", sep="\t")
    drafted = study(hospital)
    (cohort,) = drafted.cohorts
    assert cohort.clinical.path == "hospital/zz_clini.csv"
    assert {name: source.path for name, source in cohort.omics.items()} == {
        "cnv": "hospital/cnv.csv",
        "mutation": "hospital/mut.tsv",
        "rna": "hospital/rna_seq.csv",
    }
    assert drafted.model.kind == "elastic_net"
    omics = read_cohorts(drafted).omics
    assert {name: omics[name].shape for name in cohort.omics} == dict.fromkeys(cohort.omics, (N, len(GENES)))


def test_groups_of_columns_with_a_suffix_are_omics(hospital: Path) -> None:
    """PORPOISE: one file holds the clinic, the slides and three kinds of omics."""
    table = clinical().rename(columns={"PATIENT": "case_id"}).assign(slide_id=[f"s{i}.svs" for i in range(N)])
    for suffix in ("_rnaseq", "_cnv", "_mut"):
        table = table.join(matrix().drop(columns="PATIENT").iloc[:, :8].add_suffix(suffix))
    table.to_csv(hospital / "all_clean.csv.zip", index=False)
    drafted = study(hospital)
    found = {name: (source.path, source.suffix) for name, source in drafted.cohorts[0].omics.items()}
    assert found == {
        "rna": ("hospital/all_clean.csv.zip", "_rnaseq"),
        "cnv": ("hospital/all_clean.csv.zip", "_cnv"),
        "mutation": ("hospital/all_clean.csv.zip", "_mut"),
    }
    assert [task.name for task in drafted.tasks] == ["MSI_status", "LISS__total"]
    assert drafted.cohorts[0].slides is None  # none of the files lies here
    assert "# slides: hospital/all_clean.csv.zip" in draft(hospital)[0]


def test_slides_that_lie_here_are_read(hospital: Path) -> None:
    clinical().to_csv(hospital / "clini.csv", index=False)
    pd.DataFrame({"PATIENT": clinical()["PATIENT"], "FILENAME": [f"s{i}.svs" for i in range(N)]}).to_csv(
        hospital / "slides.csv", index=False
    )
    assert study(hospital).cohorts[0].slides is None
    (hospital / "wsi").mkdir()
    (hospital / "wsi" / "s3.svs").touch()
    drafted = study(hospital)
    assert (drafted.cohorts[0].slides_dir, drafted.model.kind) == ("hospital/wsi", "joint")


def test_labels_make_a_clinical_table_not_the_number_of_columns(hospital: Path) -> None:
    clinical()[["PATIENT", "MSI status"]].to_csv(hospital / "z_labels.csv", index=False)
    matrix()[["PATIENT", *GENES[:10]]].to_csv(hospital / "a_scores.csv", index=False)
    assert study(hospital).cohorts[0].clinical.path == "hospital/z_labels.csv"


def test_only_matrices_are_no_clinical_table(hospital: Path) -> None:
    matrix().to_csv(hospital / "rna.csv", index=False)
    with pytest.raises(DataError, match=r"no clinical table .* only matrices: hospital/rna.csv"):
        draft(hospital)


def test_slides_of_too_few_patients_are_left_out(hospital: Path) -> None:
    """The study would have nobody of a class: it reads covariates then."""
    clinical().to_csv(hospital / "clini.csv", index=False)
    (hospital / "slides.csv").write_text("PATIENT,FILENAME\np0001,s1.svs\n")
    (hospital / "s1.svs").touch()
    file = hospital.parent / "study.yaml"
    file.write_text(biomarker(hospital, file, Hints(check=check_draft)))
    drafted = load_study(file)
    assert (drafted.cohorts[0].slides, drafted.model.kind) == (None, "clinical")
    assert "# slides are left out: the development cohorts have nobody of class MSI-H" in file.read_text()


def workbook(path: Path) -> None:
    """Three sheets: a legend, labels under two title rows, and the ages of a few."""
    with pd.ExcelWriter(path) as book:
        pd.DataFrame({"Table S1": ["x"]}).to_excel(book, sheet_name="Legend", index=False)
        clinical().to_excel(book, sheet_name="Labels", index=False, startrow=2)
        clinical().head(3).to_excel(book, sheet_name="Few", index=False)
        book.sheets["Labels"]["A1"] = "Table S2. Patients"
        book.sheets["Labels"]["A2"] = "of the hospital"


def test_the_sheet_with_patients_is_found(hospital: Path) -> None:
    workbook(hospital / "a.xlsx")
    (hospital / "~$a.xlsx").write_bytes(b"a lock file")
    source = study(hospital).cohorts[0].clinical
    assert isinstance(source, TableSource)
    assert (source.path, source.sheet, source.header) == ("hospital/a.xlsx", "Labels", 3)
    assert "# hospital/a.xlsx: sheet 'Labels' is read, not 'Legend', 'Few' (--sheet)" in draft(hospital)[0]


def test_a_sheet_can_be_named(hospital: Path) -> None:
    workbook(hospital / "a.xlsx")
    with pytest.raises(DataError, match="no column can be the main task"):  # three patients
        biomarker(hospital, hospital.parent / "study.yaml", Hints(sheet="Few"))
    with pytest.raises(StudyError, match="no sheet 'labels'. Did you mean 'Labels'"):
        biomarker(hospital, hospital.parent / "study.yaml", Hints(sheet="labels"))


def test_a_table_that_cannot_be_used_is_a_comment(hospital: Path) -> None:
    (hospital / "a.csv").write_text("PATIENT,x\n1,2,3,4\n")
    (hospital / "codes.csv").write_text("code,name\n1,x\n")
    clinical().to_csv(hospital / "clini.csv", index=False)
    clinical("q{}").to_csv(hospital / "new.csv", index=False)
    text, _ = draft(hospital)
    remarks = [line.strip() for line in text.splitlines() if line.strip().startswith("# hospital/")]
    assert remarks == [
        "# hospital/a.csv was not read: row 2 has 4 cells under 2 column names (1, 2, 3, …); add or remove a delimiter "
        "in that row, or put quotes around a text that contains one",
        "# hospital/codes.csv was not used: no patient column is recognised among code, name: name it with --patient",
        "# hospital/new.csv was not used: it has other patients than hospital/clini.csv and may be a cohort of its own",
    ]
    assert study(hospital).main_task.name == "MSI_status"


OTHERS = {
    "splits_0.csv": ("train,val\np1,p2\np3,\n", "it holds published folds: splits: {scheme: file, files: "),
    "folds.csv": ("pid,fold\na,1\nb,2\n", "it holds published folds"),
    "sites.csv": (
        "TSS Code,Source Site\n01,A\n",
        "it names the institutions of site codes: site: {institution: ",
    ),
    "risks.csv": (
        "patient_id,mean_hazard,std_hazard,time,event\na,1.0,2,3,1\nb,2,1,4,0\n",
        "it holds predictions",
    ),
    "sets.csv": (
        "Oncogenes,Kinases\n" + "".join(f"ABL{i},AKT{i}\n" for i in range(9)),
        "it holds gene sets: tables: {rna: {gene_sets: ",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tables_are_named_and_refused(tmp_path: Path, name: str) -> None:
    content, what = OTHERS[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        biomarker(tmp_path / name, tmp_path / "study.yaml")
    assert f"{name} was not used: {what}" in str(error.value)


def test_no_task_is_invented(hospital: Path) -> None:
    clinical()[["PATIENT", "AGE", "sex", "LISS, total"]].to_csv(hospital / "clini.csv", index=False)
    assert [task.name for task in study(hospital).tasks] == ["LISS__total"]
    with pytest.raises(DataError, match="no time of follow-up with its event is left"):
        draft(hospital, survival)
    clinical()[["PATIENT"]].assign(note="x").to_csv(hospital / "clini.csv", index=False)
    with pytest.raises(DataError, match="no label is left"):
        draft(hospital)


def test_columns_can_be_named(hospital: Path) -> None:
    table = clinical().rename(columns={"PATIENT": "key", "OS_MONTHS": "FU", "OS_EVENT": "gone"})
    table.assign(centre=np.where(np.arange(N) < 20, "A", "B")).to_csv(hospital / "t.csv", index=False)
    with pytest.raises(DataError, match="no patient column is recognised among key, AGE"):
        draft(hospital)
    said: list[str] = []
    hints = Hints("key", None, "FU", "gone", {"centre": "A"}, check_draft, said.append)
    file = hospital.parent / "study.yaml"
    file.write_text(survival(hospital / "t.csv", file, hints))
    drafted = load_study(file)
    assert isinstance(drafted.main_task, SurvivalTask)
    assert drafted.main_task.columns == ("FU", "gone")
    assert len(read_cohorts(drafted).patients) == 20
    assert said[:2] == [
        "hospital/t.csv: 20 rows of 20 patients (key)",
        "  survival GONE: FU in months, gone 1 is the event",
    ]
    with pytest.raises(DataError, match=r"--time: no column 'FUP'. Did you mean 'FU'\?"):
        survival(hospital / "t.csv", file, Hints("key", time="FUP"))


def test_spellings_of_a_label_are_one_class(hospital: Path) -> None:
    """`Negative` and `negative` of the public CPTAC table; `equivocal` would be one more class."""
    values = np.array(["Positive", "negative", "Negative", "negative", "Not Reported", "positive"])[
        np.arange(N) % 6
    ]
    clinical()[["PATIENT"]].assign(ER=values).to_csv(hospital / "t.csv", index=False)
    task = study(hospital).main_task
    assert isinstance(task, BinaryTask)
    assert (task.positive, task.negative, task.exclude) == (
        ["Positive", "positive"],
        ["Negative", "negative"],
        ["Not Reported"],
    )


def test_rows_of_a_patient_that_contradict_are_no_label(hospital: Path) -> None:
    table = pd.concat([clinical(), clinical().assign(**{"MSI status": "MSS"})])
    table.to_csv(hospital / "t.csv", index=False)
    text, _ = draft(hospital)
    assert "MSI status" not in text
    assert [task.name for task in study(hospital).tasks] == ["OS"]


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
    assert "  # … and 35 more columns" in text
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
    clinical().rename(columns={"PATIENT": "key"}).to_csv(hospital / "brca.csv", index=False)
    with pytest.raises(DataError, match=r"no clinical table .*\n.*brca\.csv was not used: .* among key, AGE"):
        draft(hospital)


@pytest.mark.parametrize(
    "key", ["pid", "Patient ID", "bcr_patient_barcode", "case_submitter_id", "patient_id"]
)
def test_names_of_patients_are_understood(hospital: Path, key: str) -> None:
    clinical().rename(columns={"PATIENT": key}).to_csv(hospital / "brca.csv", index=False)
    assert len(read_cohorts(study(hospital)).patients) == N


def test_row_numbers_and_censoring_are_no_targets(hospital: Path) -> None:
    clinical().assign(censorship=np.arange(N) % 2).to_csv(hospital / "clinical.csv")  # with the index
    names = [task.column for task in study(hospital).tasks if task.type != "survival"]
    assert names == ["MSI status", "LISS, total"]
    assert "censorship" not in draft(hospital)[0]


def test_a_table_that_cannot_be_read_is_named_where_none_is_left(tmp_path: Path) -> None:
    """Whoever names the patient column is told why the table with the labels was not read."""
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "labels.csv").write_bytes("Nr;Status\np1;mäßig\np2;gut\n".encode("cp1252"))
    (tables / "slides.csv").write_text("Nr;Datei\np1;a.svs\np2;b.svs\n")
    with pytest.raises(DataError, match="no column can be the main task") as caught:
        biomarker(tables, tmp_path / "study.yaml", Hints(patient="Nr"))
    assert "labels.csv was not read: the file is not utf-8 text" in str(caught.value)
