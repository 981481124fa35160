"""Cohorts from tables to participant flow: nobody is lost without a row, no cohort reads a value differently."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from equipoise.datasets.cohorts.cohort import Cohorts, load_cohorts
from equipoise.datasets.cohorts.label_account import account_lines
from equipoise.datasets.errors import DataError, DataWarning
from equipoise.datasets.omics.params import Covariate
from equipoise.datasets.params import CohortSource, Columns
from equipoise.datasets.tables.tasks import Task

MSI = {
    "name": "MSI",
    "type": "binary",
    "column": "MSI",
    "positive": "MSI-H",
    "negative": ["MSS", "MSI-L"],
    "main": True,
}
LF = {"name": "LF", "type": "regression", "column": "LF"}
OS = {
    "name": "OS",
    "type": "survival",
    "time": {"column": "months", "unit": "months"},
    "event": {"column": "censorship", "event_value": 0},
}

CLINI_A = """PATIENT,MSI,LF,months,censorship
SYN-S1-0001,MSI-H,0.1,12,0
SYN-S1-0002,MSS,0.2,24,1
SYN-S2-0003,MSI-L,NA,0,1
SYN-S2-0004,NA,NA,NA,1
SYN-S2-0005,MSS,0.4,10,1
SYN-S2-0005,MSI-H,0.4,10,1
SYN-S1-0006,MSS,0.5,10,0
,MSS,0.5,10,0
"""
SLIDES_A = """PATIENT,FILENAME,MPP
SYN-S1-0001,a1.svs,0.5
SYN-S1-0001,a1b.svs,
SYN-S1-0002,a2.svs,
SYN-S2-0003,a3.svs,
SYN-S2-0004,a4.svs,
SYN-S2-0005,a5.svs,
SYN-S9-0099,a99.svs,
SYN-S1-0001,a1.svs,0.5
"""
CLINI_B = "case_id,slide_id,MSI,months,censorship\nB1,b1,MSI-H,5,0\nB1,b1b,MSI-H,5,0\nB2,b2,MSS,6,1\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text(CLINI_A)
    (tmp_path / "a_slides.csv").write_text(SLIDES_A)
    (tmp_path / "b.csv").write_text(CLINI_B)
    return tmp_path


def sources(*changes: dict[str, Any]) -> list[CohortSource]:
    first: dict[str, Any] = {
        "name": "A",
        "role": "develop",
        "clinical": "a.csv",
        "slides": "a_slides.csv",
        "slides_dir": "wsi",
        "site": "tss",
    }
    second: dict[str, Any] = {"name": "B", "role": "external", "clinical": "b.csv", "slides": "b.csv"}
    merged = [spec | change for spec, change in zip((first, second), (*changes, {}, {}), strict=False)]
    return [CohortSource.model_validate(spec) for spec in merged]


def load(base: Path, *changes: dict[str, Any], tasks: tuple[dict[str, Any], ...] = (MSI, LF, OS)) -> Cohorts:
    adapter = TypeAdapter(Task)
    return load_cohorts(sources(*changes), [adapter.validate_python(task) for task in tasks], None, base)


def stages(cohorts: Cohorts, cohort: str) -> dict[str, tuple[int, int, int]]:
    return {
        r["stage"]: (r["patients"], r["slides"], r["excluded"]) for r in cohorts.flow if r["cohort"] == cohort
    }


def test_patients_slides_and_flow(base: Path) -> None:
    cohorts = load(base)
    assert cohorts.patients["patient"].tolist() == ["SYN-S1-0001", "SYN-S1-0002", "SYN-S2-0003", "B1", "B2"]
    assert cohorts.patients["site"].tolist() == ["S1", "S1", "S2", "B", "B"]
    assert cohorts.patients["role"].tolist() == ["develop"] * 3 + ["external"] * 2
    np.testing.assert_array_equal(cohorts.patients["MSI"], [1, 0, 0, 1, 0])
    np.testing.assert_array_equal(cohorts.patients["LF"], [0.1, 0.2, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(cohorts.patients["OS.event"], [1, 0, np.nan, 1, 0])
    np.testing.assert_allclose(cohorts.patients["OS.time"][[0, 3]], [365.25, 5 * 30.4375])
    assert cohorts.slides["slide"].tolist() == ["a1", "a1b", "a2", "a3", "b1", "b1b", "b2"]
    assert cohorts.slides["path"].iloc[0] == str(base / "wsi" / "a1.svs")
    assert cohorts.slides["mpp"].notna().sum() == 1
    assert stages(cohorts, "A") == {
        "in table": (6, 7, 0),
        "unique": (5, 6, 1),
        "has slide": (4, 5, 1),
        "has label": (3, 4, 1),
    }
    assert stages(cohorts, "B") == dict.fromkeys(("in table", "unique", "has slide", "has label"), (2, 3, 0))


def test_every_loss_is_a_row_with_its_reason(base: Path) -> None:
    rows = load(base).exclusions
    result = {(r.patient, r.slide, r.stage): r.reason for r in rows.itertuples()}
    assert result[("", "", "in table")] == "row 9 of a.csv has no patient key"
    assert (
        result[("SYN-S1-0001", str(base / "wsi" / "a1.svs"), "unique")]
        == "the slides table lists the file again"
    )
    assert "rows 6 and 7 contradict in 'MSI': 'MSS' and 'MSI-H'" in result[("SYN-S2-0005", "", "unique")]
    assert result[("SYN-S2-0005", "a5", "unique")].startswith("its patient is left out")
    assert result[("SYN-S1-0006", "", "has slide")] == "the slides table lists no slide"
    assert result[("SYN-S9-0099", "a99", "has slide")] == "its patient is not in the clinical table"
    reason = result[("SYN-S2-0004", "", "has label")]
    assert "MSI: 'NA' counts as missing" in reason
    assert "OS: 'NA' counts as missing" in reason
    assert len(rows) == 8


def test_label_gaps_and_notes(base: Path) -> None:
    cohorts = load(base)
    gaps = {(g.patient, g.task): g.reason for g in cohorts.label_gaps.itertuples()}
    assert gaps[("SYN-S2-0003", "OS")] == "time 0 months is not after the start of follow-up"
    assert gaps[("B1", "LF")] == "cohort B has no column 'LF'"
    notes = "\n".join(cohorts.notes)
    assert "a.csv is read as equipoise/STAMP (PATIENT)" in notes
    assert "b.csv is read as CLAM/PORPOISE/SurvPath (case_id, slide_id)" in notes
    assert "cohort B: 3 rows of the clinical table are 2 patients" in notes
    assert "task 'LF': cohort B has no column 'LF'" in notes


def test_labels_are_accounted_for_although_another_task_keeps_the_patient(base: Path) -> None:
    cohorts = load(base)
    accounts = {(a.task, a.cohort): a for a in cohorts.label_accounts}
    os = accounts[("OS", "A")]
    assert (os.patients, os.usable, os.unusable) == (4, 2, 1)  # 0004, who has no label at all, is one of four
    assert [(loss.reason, loss.patients, loss.expected) for loss in os.losses] == [
        ("a time that is not after the start of follow-up", 1, False),
        ("no value", 1, True),
    ]
    assert os.losses[0].examples == ("'0' in row 4, SYN-S2-0003",)
    assert os.warning is not None
    assert "for 1 of 4 patients is no usable label: 1 a time that is not after" in os.warning
    assert accounts[("LF", "B")].warning is None  # the cohort has no such column, which a note says
    losses = cohorts.losses
    of_task = losses[losses["task"] != ""]
    assert of_task[["patient", "task", "stage"]].to_numpy().tolist() == [
        ["SYN-S2-0003", "LF", "label"],
        ["B1", "LF", "label"],
        ["B2", "LF", "label"],
        ["SYN-S2-0003", "OS", "label"],
    ]
    pd.testing.assert_frame_equal(
        losses[losses["task"] == ""][list(cohorts.exclusions)].reset_index(drop=True), cohorts.exclusions
    )
    assert account_lines(cohorts.label_accounts)[1] == (
        "LF: 2 of 6 patients (A 2 of 4, B 0 of 2); 2 no value; 2 no such column"
    )


def test_a_column_that_occurs_twice_is_not_chosen_by_chance(base: Path) -> None:
    (base / "b.csv").write_text("case_id,slide_id,MSI,LF,LF\nB1,b1,MSI-H,1,2\nB2,b2,MSS,3,4\n")
    cohorts = load(base, tasks=(MSI, LF))
    account = next(a for a in cohorts.label_accounts if (a.task, a.cohort) == ("LF", "B"))
    assert account.usable == 0
    assert account.warning is not None
    assert "2 a column that occurs several times" in account.warning
    remedy = "write which one: rename: {'LF (1)': 'LF'} of the table"
    assert any(remedy in note for note in cohorts.notes)
    (base / "a.csv").write_text("PATIENT,MSI,LF,LF\nSYN-S1-0001,MSI-H,1,2\nSYN-S1-0002,MSS,3,4\n")
    with pytest.raises(DataError, match="occurs 2 times in a.csv, as 'LF .1.' and 'LF .2.'") as caught:
        load(base, tasks=(MSI, LF))
    assert caught.value.fix == remedy
    renamed = {"clinical": {"path": "a.csv", "rename": {"LF (1)": "LF"}}}
    np.testing.assert_array_equal(load(base, renamed, tasks=(MSI, LF)).patients["LF"][:2], [1, 3])


def test_a_label_map_is_decided_over_all_cohorts(base: Path) -> None:
    # Each cohort alone has two values; together there are three, and MSI-L must be decided.
    (base / "a.csv").write_text("PATIENT,MSI\nSYN-S1-0001,MSI-H\nSYN-S1-0002,MSI-L\n")
    task = {"name": "MSI", "type": "binary", "column": "MSI", "positive": "MSI-H"}
    with pytest.raises(DataError, match="values 'MSI-L', 'MSS' are neither"):
        load(base, tasks=(task,))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (LF | {"column": "Lf"}, r"no cohort has the column 'Lf'; nearest: 'LF'"),
        (MSI | {"positive": "x"}, "'MSI-H' is neither a class nor excluded"),
        (OS | {"event": {"column": "censored", "event_value": 0}}, "no cohort has the column 'censored'"),
    ],
)
def test_tasks_that_do_not_fit_the_tables(base: Path, task: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(base, tasks=(task,))


def test_classes_must_be_in_development(base: Path) -> None:
    (base / "a.csv").write_text("PATIENT,MSI\nSYN-S1-0001,MSS\nSYN-S1-0002,MSS\n")
    with pytest.raises(DataError, match="development cohorts have nobody of class MSI-H among 2 labelled"):
        load(base, tasks=(MSI,)).require_learnable()


def test_patients_of_two_cohorts(base: Path) -> None:
    (base / "b.csv").write_text("case_id,slide_id,MSI\nSYN-S1-0001,b1,MSS\nB2,b2,MSS\n")
    with pytest.raises(DataError, match="1 patients stand in two cohorts: SYN-S1-0001 in A and B"):
        load(base, tasks=(MSI,))


def test_keys_that_do_not_line_up(base: Path) -> None:
    (base / "a_slides.csv").write_text("PATIENT,FILENAME\nSYN-S1-0001-01Z-00-DX1,a1.svs\n")
    with pytest.raises(
        DataError, match=r"(?s)no patient of the slides table is in the.*first three fields"
    ) as e:
        load(base)
    assert "'SYN-S1-0001-01Z-00-DX1' there" in e.value.what
    assert "'SYN-S1-0001', 'SYN-S1-0002'" in e.value.what


def test_nobody_is_left(base: Path) -> None:
    (base / "b.csv").write_text("case_id,slide_id,MSI\nB1,b1,NA\n")
    with pytest.raises(
        DataError, match=r"nobody is left in cohort B\..*B: in table 1 → unique 1 → has slide 1 → has label 0"
    ):
        load(base, tasks=(MSI,))


def test_without_tasks_everybody_is_in(base: Path) -> None:
    cohorts = load(base, tasks=())
    assert len(cohorts.patients) == 7  # without labels, the rows of SYN-S2-0005 do not contradict
    assert "has label" not in stages(cohorts, "A")


def test_names_are_given_once(base: Path) -> None:
    with pytest.raises(DataError, match="2 cohorts are called 'B'"):
        load(base, {"name": "B"})
    with pytest.raises(DataError, match="2 tasks are called 'MSI'"):
        load(base, tasks=(MSI, MSI))


def test_units_and_wide_ranges_are_checked_per_cohort(base: Path) -> None:
    (base / "b.csv").write_text("case_id,slide_id,MSI,LF\nB1,b1,MSI-H,10\nB2,b2,MSS,30\n")
    assert any("LF" in note and "same unit" in note for note in load(base).notes)
    (base / "b.csv").write_text("case_id,slide_id,MSI,LF\nB1,b1,MSI-H,256666666667\nB2,b2,MSS,0.3\n")
    with pytest.raises(DataError, match="orders of magnitude"):
        load(base)


def test_inverted_censorship_is_remarked(base: Path) -> None:
    wrong = OS | {"event": {"column": "censorship", "event_value": 1}}
    assert any("1 means censored" in note for note in load(base, tasks=(wrong,)).notes)
    assert not any("1 means censored" in note for note in load(base, tasks=(OS,)).notes)


def status(**given: str) -> pd.DataFrame:
    rows = [(slide, state, f"why {slide}" if state != "ok" else "") for slide, state in given.items()]
    return pd.DataFrame(rows, columns=["slide", "status", "error"])


def test_slides_that_failed(base: Path) -> None:
    before = load(base)
    after = before.with_slide_status(
        status(a1="unreadable", a1b="ok", a2="ok", a3="no_mpp", b1="no_tissue", b2="ok")
    )
    assert after.patients["patient"].tolist() == ["SYN-S1-0001", "SYN-S1-0002", "B2"]
    assert after.slides["slide"].tolist() == ["a1b", "a2", "b2"]
    assert stages(after, "A") == stages(before, "A") | {
        "readable": (3, 3, 0),
        "mpp ok": (2, 2, 1),
        "tissue": (2, 2, 0),
        "used": (2, 2, 0),
    }
    assert stages(after, "B")["tissue"] == (1, 1, 1)
    reasons = {(r.patient, r.slide): (r.stage, r.reason) for r in after.exclusions.itertuples()}
    assert reasons[("SYN-S1-0001", "a1")] == ("readable", "unreadable: why a1")
    assert reasons[("SYN-S2-0003", "")] == ("mpp ok", "no usable slide; a3: no_mpp: why a3")
    assert reasons[("B1", "b1b")] == ("readable", "missing: the slide was not extracted")
    assert len(after.exclusions) == len(before.exclusions) + 4 + 2
    assert set(after.label_gaps["patient"]) == {
        "B2",
        "SYN-S2-0004",
    }  # who left with a slide, B1 too, has no account


def test_slides_that_failed_leave_somebody_to_learn_from(base: Path) -> None:
    cohorts = load(base)
    with pytest.raises(DataError, match="nobody is left in the development cohorts"):
        cohorts.with_slide_status(status(b1="ok", b1b="ok", b2="ok")).require_learnable()
    with pytest.raises(DataError, match="nobody of class MSI-H among 2 labelled"):
        cohorts.with_slide_status(status(a2="ok", a3="ok", b1="ok")).require_learnable()
    alone = cohorts.with_slide_status(status(a1="ok", a2="ok", a3="ok"))
    assert any("cohort B: nobody is left" in note for note in alone.notes)
    with pytest.raises(DataError, match="1 slides have several rows"):
        cohorts.with_slide_status(pd.concat([status(a1="ok"), status(a1="error")]))


def test_dropping_for_ones_own_reason(base: Path) -> None:
    dropped = load(base).drop({"SYN-S2-0003": "subsample", "stranger": "nobody"}, "subsample")
    assert len(dropped.patients) == 4
    assert stages(dropped, "A")["subsample"] == (2, 3, 1)
    assert "used" not in stages(dropped, "A")
    used = dropped.with_slide_status(status(a1="ok", a1b="ok", a2="ok", b1="ok", b1b="ok", b2="ok"))
    assert list(stages(used, "A"))[-1] == "used"
    assert stages(used, "B")["used"] == (2, 3, 0)
    late = used.drop({"B2": "withdrew"}, "late")
    assert list(stages(late, "B"))[-2:] == ["late", "used"]
    assert stages(late, "B")["used"] == (1, 2, 0)


def test_omics_of_several_cohorts(base: Path) -> None:
    (base / "rna_a.csv").write_text("PATIENT,G1,G2,G3\nSYN-S1-0001,1,2,\nSYN-S1-0002,4,5,6\nnobody,7,8,9\n")
    (base / "rna_b.csv").write_text("case_id,G3,G1\nB2,0.5,1.5\n")
    with pytest.warns(DataWarning, match="cohort B lacks 1 of 3 rna columns"):
        cohorts = load(base, {"omics": {"rna": "rna_a.csv"}}, {"omics": {"rna": "rna_b.csv"}})
    rna = cohorts.omics["rna"]
    assert rna.index.tolist() == ["SYN-S1-0001", "SYN-S1-0002", "B2"]
    assert rna.columns.tolist() == ["G1", "G2", "G3"]  # development decides
    assert rna.dtypes.tolist() == [np.float32] * 3
    np.testing.assert_array_equal(rna.loc["B2"], np.array([1.5, np.nan, 0.5], np.float32))
    notes = "\n".join(cohorts.notes)
    assert "cohort A: rna of 2 of 6 patients; 1 rows belong to nobody" in notes
    assert "cohort B lacks 1 of 3 rna columns, e.g. G2; they are filled with training medians" in notes
    assert "rna: 1 single values are missing" in notes


def test_omics_turned_round_or_strange(base: Path) -> None:
    (base / "rna.csv").write_text("PATIENT,SYN-S1-0001,SYN-S1-0002\nG1,1,2\nG2,3,4\n")
    with pytest.raises(DataError, match="transpose the table"):
        load(base, {"omics": {"rna": "rna.csv"}})
    (base / "rna.csv").write_text("PATIENT,G1\nSYN-S1-0001,1\n")
    (base / "rna_b.csv").write_text("PATIENT,ENSG1\nB1,1\n")
    with pytest.raises(DataError, match="share no rna column"):
        load(base, {"omics": {"rna": "rna.csv"}}, {"omics": {"rna": "rna_b.csv"}})


def test_columns_of_study_and_cohort(base: Path) -> None:
    (base / "a.csv").write_text("ID,MSI\nSYN-S1-0001,MSI-H\nSYN-S1-0002,MSS\n")
    source = CohortSource.model_validate(
        {"name": "A", "role": "develop", "clinical": "a.csv", "slides": "a_slides.csv"}
    )
    task = TypeAdapter(Task).validate_python(MSI)
    cohorts = load_cohorts([source], [task], Columns(patient="ID"), base)
    assert len(cohorts.patients) == 2
    assert any("a_slides.csv is read as equipoise/STAMP" in note for note in cohorts.notes)
    with pytest.raises(DataError, match="no column 'id'"):
        load_cohorts([source], [task], Columns(patient="id"), base)


def test_an_omics_key_that_has_lost_zeros_is_said(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("PATIENT,MSI\n07,1\n08,0\n")
    task = {"name": "MSI", "type": "binary", "column": "MSI", "positive": 1}
    source = {"name": "A", "role": "develop", "clinical": "c.csv", "omics": {"rna": "rna.csv"}}

    def notes(rows: str) -> tuple[str, ...]:
        (tmp_path / "rna.csv").write_text(f"PATIENT,TP53\n{rows}")
        tasks = [TypeAdapter(Task).validate_python(task)]
        return load_cohorts([CohortSource.model_validate(source)], tasks, None, tmp_path).notes

    with pytest.raises(DataError, match=r"fix: 2 keys .*without leading zeros \('7' against '07'"):
        notes("7,1.5\n8,2.5\n")
    assert any("of the rna matrix, 1 key matches" in note for note in notes("07,1.5\n8,2.5\n"))


def read_by(base: Path, reads: set[str], *covariates: dict[str, Any], **changes: Any) -> Cohorts:
    """Cohort A with RNA of two patients, as a model sees it that reads these modalities."""
    (base / "rna.csv").write_text("PATIENT,G1\nSYN-S1-0002,1\nSYN-S1-0006,2\n")
    source, _ = sources({"omics": {"rna": "rna.csv"}} | changes)
    specs = [Covariate.model_validate(covariate) for covariate in covariates]
    tasks = [TypeAdapter(Task).validate_python(MSI)]
    return load_cohorts([source], tasks, None, base, covariates=specs, reads=frozenset(reads))


def test_a_model_of_tables_needs_no_slide(base: Path) -> None:
    cohorts = read_by(base, {"rna"})
    assert cohorts.patients["patient"].tolist() == ["SYN-S1-0002", "SYN-S1-0006"]
    assert len(cohorts.slides) == 0
    lost = cohorts.exclusions.set_index("patient")
    assert lost.loc["SYN-S1-0001", "stage"] == "has table"
    assert lost.loc["SYN-S1-0001", "reason"] == "no row in what the model reads (rna)"
    assert lost.loc["SYN-S2-0005", "stage"] == "unique"
    used = cohorts.without_slides()
    assert stages(used, "A")["used"] == (2, 0, 0)


def test_a_model_of_slides_and_tables_takes_who_has_either(base: Path) -> None:
    cohorts = read_by(base, {"wsi", "rna"})
    assert cohorts.patients["patient"].tolist() == [
        "SYN-S1-0001",
        "SYN-S1-0002",
        "SYN-S2-0003",
        "SYN-S1-0006",
    ]
    used = cohorts.with_slide_status(status(a1="ok", a1b="no_mpp", a2="unreadable", a3="no_tissue"))
    assert used.patients["patient"].tolist() == ["SYN-S1-0001", "SYN-S1-0002", "SYN-S1-0006"]
    assert used.slides["slide"].tolist() == ["a1"]
    left = used.exclusions.query("slide == ''").set_index("patient")["reason"]
    assert left["SYN-S2-0003"].startswith("no usable slide; a3: no_tissue")


def test_a_model_of_slides_loads_no_table(base: Path) -> None:
    cohorts = read_by(base, {"wsi"}, {"column": "LF", "type": "number"})
    assert cohorts.omics == {}
    assert cohorts.patients["patient"].tolist() == ["SYN-S1-0001", "SYN-S1-0002", "SYN-S2-0003"]


def test_covariates_are_a_modality(base: Path) -> None:
    cohorts = read_by(base, {"clinical"}, {"column": "LF", "type": "number"})
    clinical = cohorts.omics["clinical"]
    assert clinical.columns.tolist() == ["LF"]
    assert clinical.index.tolist() == ["SYN-S1-0001", "SYN-S1-0002", "SYN-S1-0006"]
    reasons = cohorts.exclusions.set_index("patient")["reason"]
    assert reasons["SYN-S2-0003"] == "no row in what the model reads (clinical)"


def test_a_matrix_that_holds_the_label_is_leakage(base: Path) -> None:
    (base / "all.csv").write_text("PATIENT,G1,MSI\nSYN-S1-0001,1,1\nSYN-S1-0002,2,0\n")
    with pytest.raises(DataError, match=r"holds column 'MSI', which a task predicts: that is leakage"):
        read_by(base, {"rna"}, omics={"rna": "all.csv"})
    cohorts = read_by(base, {"rna"}, omics={"rna": {"path": "all.csv", "rename": {"MSI": "MSI_expression"}}})
    assert cohorts.omics["rna"].columns.tolist() == ["G1", "MSI_expression"]


def test_an_absent_folder_of_slides_is_noted(base: Path) -> None:
    note = "cohort A: there is no folder 'wsi' (slides_dir)"
    assert note in load(base).notes
    (base / "wsi").mkdir()
    assert note not in load(base).notes
    assert not any("slides_dir" in said for said in load(base, {"slides_dir": "s3://bucket/wsi"}).notes)
