"""Names of genes: what a table of symbols says, what is not guessed, and columns that become one gene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.gene_symbols import GeneTable, changes_note, harmonised, rule_for
from equipoise.datasets.omics.matrix import read_matrix
from equipoise.datasets.params import OmicsSource, TableSource

#: Lines of hgnc_complete_set.txt, cut to some of its columns. MLL2 was KMT2D's symbol and is an alias of KMT2B.
HGNC = """\
hgnc_id\tsymbol\tname\tlocus_group\talias_symbol\tprev_symbol\tensembl_gene_id
HGNC:11998\tTP53\ttumor protein p53\tprotein-coding gene\t"p53|LFS1"\t\tENSG00000141510
HGNC:7133\tKMT2D\tlysine methyltransferase 2D\tprotein-coding gene\t"ALR|MLL4"\t"TNRC21|MLL2"\tENSG00000167548
HGNC:15840\tKMT2B\tlysine methyltransferase 2B\tprotein-coding gene\t"MLL2|HRX2"\t\tENSG00000272333
HGNC:6025\tCXCL8\tC-X-C motif chemokine ligand 8\tprotein-coding gene\t"SCYB8|NAP-1|p8"\t"IL8"\tENSG00000169429
HGNC:29574\tNUPR1\tnuclear protein 1\tprotein-coding gene\t"COM1|p8"\t\tENSG00000176046
HGNC:26512\tC1orf112\tchromosome 1 open reading frame 112\tprotein-coding gene\t\t\tENSG00000000460
HGNC:11182\tSOX30~withdrawn\tsymbol withdrawn\twithdrawn\t"OLD1"\t\t
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> GeneTable:
    folder = tmp_path_factory.mktemp("hgnc")
    (folder / "hgnc.txt").write_text(HGNC)
    return GeneTable.read(TableSource(path="hgnc.txt"), folder)


def frame(*names: str, rows: int = 3) -> pd.DataFrame:
    values = np.arange(rows * len(names), dtype=np.float32).reshape(rows, len(names))
    return pd.DataFrame(values, index=[f"p{i}" for i in range(rows)], columns=list(names))


@pytest.mark.parametrize(
    ("name", "symbol", "change"),
    [
        ("TP53", "TP53", ""),
        ("tp53", "TP53", "case"),
        ("C1ORF112", "C1orf112", "case"),
        ("IL8", "CXCL8", "previous symbol"),
        ("MLL2", "KMT2D", "previous symbol"),  # an alias of another gene: the approved history comes first
        ("MLL4", "KMT2D", "alias"),
        ("LFS1", "TP53", "alias"),
        ("P53", "TP53", "alias"),
        ("ENSG00000141510", "TP53", "ensembl id"),
        ("p8", "p8", "ambiguous"),
        ("OLD1", "OLD1", "unknown"),
        ("2-Sep", "2-Sep", "spreadsheet date"),
        ("Mar-01", "Mar-01", "spreadsheet date"),
    ],
)
def test_what_a_name_stands_for(table: GeneTable, name: str, symbol: str, change: str) -> None:
    assert table.look_up(name)[:2] == (symbol, change)
    if change == "ambiguous":
        assert table.look_up(name).detail == "CXCL8 or NUPR1"


def test_every_change_is_listed(table: GeneTable) -> None:
    matrix, changes = harmonised(frame("TP53", "IL8", "ENSG00000167548.13", "p8", "XYZ"), table, "sum")
    assert list(matrix.columns) == ["TP53", "CXCL8", "KMT2D", "p8", "XYZ"]
    np.testing.assert_array_equal(matrix, frame(*"abcde"))
    assert changes.to_numpy().tolist() == [
        ["IL8", "CXCL8", "previous symbol", "renamed"],
        ["ENSG00000167548.13", "KMT2D", "ensembl id", "renamed"],
        ["p8", "CXCL8 or NUPR1", "ambiguous", "kept"],
        ["XYZ", "XYZ", "unknown", "kept"],
    ]
    assert changes_note(changes, "A", "rna", "hgnc.txt") == (
        "cohort A: rna genes by hgnc.txt: 2 renamed (1 previous symbol, 1 ensembl id); "
        "2 kept (1 ambiguous, 1 unknown); manifest/gene_names.csv lists them"
    )
    matrix, changes = harmonised(frame("TP53", "p8", "XYZ"), table, "sum", "drop")
    assert list(matrix.columns) == ["TP53"]
    assert changes["result"].tolist() == ["dropped", "dropped"]
    with pytest.raises(DataError, match="none of 2 genes is known"):
        harmonised(frame("p8", "XYZ"), table, "sum", "drop")


def test_columns_of_one_gene_become_one(table: GeneTable) -> None:
    matrix = frame("IL8", "TP53", "CXCL8")
    matrix.loc["p1", "IL8"] = np.nan
    matrix.loc["p2", ["IL8", "CXCL8"]] = np.nan
    expected = {"sum": [0 + 2, 5, np.nan], "mean": [(0 + 2) / 2, 5, np.nan], "max": [2, 5, np.nan]}
    for rule, values in expected.items():
        result, changes = harmonised(matrix, table, rule)  # type: ignore[arg-type]
        assert list(result.columns) == ["CXCL8", "TP53"]
        np.testing.assert_array_equal(result["CXCL8"], values)
        np.testing.assert_array_equal(result["TP53"], matrix["TP53"])
        assert changes.to_numpy().tolist() == [
            ["IL8", "CXCL8", "previous symbol", f"merged by {rule}"],
            ["CXCL8", "CXCL8", "same gene", f"merged by {rule}"],
        ]
    assert [rule_for("rna", kind) for kind in ("counts", "tpm", "log", "zscore")] == [
        "sum",
        "sum",
        "mean",
        "mean",
    ]
    assert (rule_for("cnv", None), rule_for("mutation", None)) == ("mean", "max")


def test_without_a_table_versions_of_ensembl_ids_go() -> None:
    names = (
        "ENSG00000182378.15",
        "ENSG00000182378.15_PAR_Y",
        "ENSMUSG00000059552",
        "IL8",
        "ENSG00000141510.17",
    )
    matrix, changes = harmonised(frame(*names), None, "sum")
    assert list(matrix.columns) == ["ENSG00000182378", "ENSMUSG00000059552", "IL8", "ENSG00000141510"]
    np.testing.assert_array_equal(
        matrix["ENSG00000182378"], frame(*names)[names[0]]
    )  # the copy on Y is not added
    assert changes.set_index("name")["result"].to_dict() == {
        names[0]: "renamed",
        names[1]: "dropped",
        names[4]: "renamed",
    }
    plain = frame("A", "B")
    same, none = harmonised(plain, None, "sum")
    pd.testing.assert_frame_equal(same, plain)
    assert none.empty
    assert changes_note(none, "A", "rna", None) == ""


def test_headings_are_found_or_named(tmp_path: Path) -> None:
    (tmp_path / "custom.tsv").write_text(
        "Approved symbol\tPrevious symbols\tAlias symbols\nKMT2D\tTNRC21, MLL2\t\nTP53\t\tp53\n"
    )
    assert GeneTable.read(TableSource(path="custom.tsv"), tmp_path).look_up("MLL2").symbol == "KMT2D"
    (tmp_path / "own.csv").write_text("now,then\nKMT2D,MLL2\n")
    with pytest.raises(DataError, match=r"no column of approved symbols is recognised; columns: now, then"):
        GeneTable.read(TableSource(path="own.csv"), tmp_path)
    source = TableSource(path="own.csv", rename={"now": "symbol", "then": "prev_symbol"})
    assert GeneTable.read(source, tmp_path).look_up("MLL2").symbol == "KMT2D"
    (tmp_path / "alone.csv").write_text("symbol,name\nTP53,tumor protein p53\n")
    with pytest.raises(DataError, match="no column of previous symbols, aliases or Ensembl ids"):
        GeneTable.read(TableSource(path="alone.csv"), tmp_path)


@pytest.mark.real
def test_columns_of_porpoise(shared_data: Path, table: GeneTable) -> None:
    folder = shared_data / "tcga" / "porpoise"
    source = OmicsSource(path="tcga_kirp_all_clean.csv.zip", suffix="_rnaseq")
    # One of its 1,557 columns under the name that CXCL8 had until 2015.
    matrix = read_matrix(source, folder).iloc[:20]
    old = matrix.rename(columns={"CXCL8": "IL8"})
    result, changes = harmonised(old, table, rule_for("rna", "zscore"))
    assert list(result.columns) == list(matrix.columns)
    np.testing.assert_array_equal(result, matrix)
    assert len(matrix.columns) == 1557
    assert changes[changes["result"] == "renamed"].to_numpy().tolist() == [
        ["IL8", "CXCL8", "previous symbol", "renamed"]
    ]
