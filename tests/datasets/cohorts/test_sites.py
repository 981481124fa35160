"""Sites: barcodes by their dashes, codes as text, institutions over their codes."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.datasets.cohorts.sites import SCHEMES, patient_code, read_institutions, tss_code
from equipoise.datasets.errors import DataError
from equipoise.datasets.params import SiteSource

CODE = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=1, max_size=4)


@given(CODE, CODE, st.sampled_from(["", "-01Z-00-DX1"]))
def test_barcodes_are_cut_at_dashes(site: str, participant: str, rest: str) -> None:
    assert tss_code(f"TCGA-{site}-{participant}{rest}") == site
    assert patient_code(f"SYN-{site}-{participant}{rest}") == f"SYN-{site}-{participant}"


@pytest.mark.parametrize("key", ["C3L-00001", "01CO001", "TCGA", "TCGA-AA", "XTCGA-AA-1", ""])
def test_other_keys_carry_no_site(key: str) -> None:
    assert tss_code(key) is None
    assert patient_code(key) == key


@pytest.fixture
def base(tmp_path: Path) -> Path:
    rows = [
        "01;International Genomics Consortium",
        "NA;Duke University",
        "BH;University Of Pittsburgh",
        "B0; University  of Pittsburgh",
    ]
    (tmp_path / "tss.csv").write_text("TSS Code;Source Site\n" + "\n".join(rows) + "\n")
    return tmp_path


def clinical(*patients: str, **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=list(patients), dtype=object)


def test_spellings_of_an_institution_are_one(base: Path) -> None:
    result = read_institutions("tss.csv", base)
    assert result["B0"] == result["BH"] == "University Of Pittsburgh"
    assert result["NA"] == "Duke University"


def sites_of(table: pd.DataFrame, cohort: str, source: SiteSource, base: Path) -> tuple[list[str], list[str]]:
    scheme = SCHEMES[source.scheme]
    return scheme.find(table, cohort, scheme.params.model_validate(source.options), base)


def test_institutions_and_unknown_codes(base: Path) -> None:
    source = SiteSource.model_validate({"institution": "tss.csv"})
    patients = ("TCGA-01-0001", "TCGA-NA-0002", "TCGA-B0-0003", "TCGA-ZZ-0004")
    sites, notes = sites_of(clinical(*patients), "A", source, base)
    assert sites == ["International Genomics Consortium", "Duke University", "University Of Pittsburgh", "ZZ"]
    assert len(notes) == 1
    assert "ZZ of 1 patients" in notes[0]


def test_a_code_for_two_institutions_is_refused(base: Path) -> None:
    with (base / "tss.csv").open("a") as stream:
        stream.write("BH;Somewhere else\n")
    with pytest.raises(DataError, match="'BH' stands for both"):
        read_institutions("tss.csv", base)
    (base / "other.csv").write_text("Code,Source Site\nA,B\n")
    with pytest.raises(DataError, match="no column 'TSS Code'"):
        read_institutions("other.csv", base)


def test_codes_and_cohorts(base: Path) -> None:
    table = clinical("TCGA-01-0001", "SYN-S3-CA001")
    assert sites_of(table, "A", SiteSource(scheme="tss"), base) == (["01", "S3"], [])
    assert sites_of(table, "A", SiteSource(), base) == (["A", "A"], [])
    with pytest.raises(DataError, match=r"1 of 3 patient keys .*C3L-1.*\n.*site: cohort"):
        sites_of(clinical("TCGA-01-1", "TCGA-02-2", "C3L-1"), "A", SiteSource(scheme="tss"), base)


def test_columns_with_gaps_and_lost_zeros(base: Path) -> None:
    source = SiteSource.model_validate({"column": "site"})
    table = clinical("TCGA-02-0047", "TCGA-3C-AALI", "TCGA-06-0125", site=["2", "3C", ""])
    sites, notes = sites_of(table, "GBM", source, base)
    assert sites == ["GBM:2", "GBM:3C", "GBM:unknown"]
    assert "1 patients have no 'site'" in notes[0]
    assert "has lost leading zeros ('2' for TCGA-02-0047, 1 patients): use 'site: tss'" in notes[1]
    assert sites_of(clinical("p1", site=["NA"]), "A", source, base)[0] == ["A:NA"]


def test_only_barcodes_name_a_site_across_cohorts(base: Path) -> None:
    table = clinical("TCGA-01-0001", hospital=["1"])
    for source, same in ({"column": "hospital"}, False), ("tss", True), ({"institution": "tss.csv"}, True):
        parsed = SiteSource.model_validate(source)
        first, second = (sites_of(table, cohort, parsed, base)[0] for cohort in "AB")
        assert (first == second) is same
    assert sites_of(table, "A", SiteSource.model_validate({"column": "hospital"}), base)[0] == ["A:1"]
