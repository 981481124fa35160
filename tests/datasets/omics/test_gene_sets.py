"""Gene sets: their files, how much of them a table holds, and columns and scores that they choose."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.fitting import fit_tables, transform_from_json, transform_to_json
from equipoise.datasets.omics.gene_sets import overlap_note, read_gene_sets, within
from equipoise.datasets.omics.matrix import read_matrix
from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.omics.resolution import resolve_tables
from equipoise.datasets.omics.statistics import LocalTable
from equipoise.datasets.params import OmicsSource

GENES = tuple(f"G{i}" for i in range(12))
SETS = {"first": ["G1", "G4", "G7"], "second": ["G4", "G9", "ELSEWHERE"], "lone": ["G2", "MISSING"]}


def counts(n: int = 60) -> np.ndarray:
    rng = np.random.default_rng(2)
    return rng.poisson(np.exp(rng.normal(4, 1, (n, 1)) + rng.normal(0, 1, (n, len(GENES))))).astype(
        np.float32
    )


def table(cohorts: int = 1) -> LocalTable:
    rows = counts()
    return LocalTable(rows, GENES, [f"C{i % cohorts}" for i in range(len(rows))])


def test_gmt_and_columns_hold_the_same_sets(tmp_path: Path) -> None:
    gmt = "A\thttp://a\tTP53\tKRAS\tTP53\nB\t\tEGFR\t\n\n"
    (tmp_path / "sets.gmt").write_text(gmt)
    with gzip.open(tmp_path / "sets.gmt.gz", "wt") as stream:
        stream.write(gmt)
    (tmp_path / "sets.csv").write_text("A,B\nTP53,EGFR\nKRAS,\nTP53,\n")
    expected = {"A": ("TP53", "KRAS"), "B": ("EGFR",)}
    for name in ("sets.gmt", "sets.gmt.gz", "sets.csv"):
        assert read_gene_sets(name, tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A\td\tTP53\nB\tEGFR\n", "line 2 is no gene set"),
        ("A\td\tTP53\nA\td\tEGFR\n", r"two sets are called 'A' \(the second in line 2\)"),
        ("\n", "holds no gene set"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "sets.gmt").write_text(text)
    with pytest.raises(DataError, match=said):
        read_gene_sets("sets.gmt", tmp_path)
    (tmp_path / "sets.csv").write_text("A,B\nTP53,\n")
    with pytest.raises(DataError, match="set 'B' has no gene"):
        read_gene_sets("sets.csv", tmp_path)


def test_overlap_is_said() -> None:
    assert within(SETS, GENES, 2) == {"first": ("G1", "G4", "G7"), "second": ("G4", "G9")}
    assert overlap_note(SETS, GENES, 2) == (
        "gene sets: 2 sets; 5 of their 7 genes are in the rna table of 12 genes; the median set keeps 100% of its "
        "genes; 1 with fewer than 2 left out (lone)"
    )
    with pytest.raises(DataError, match=r"no gene set has 1 or more of the table's 1 genes: G1 .* ENSG1"):
        within(SETS, ["ENSG1"])
    with pytest.raises(DataError, match="there are no gene sets"):
        within({}, GENES)


def params(**options: object) -> TableParams:
    return TableParams.model_validate({"rna": {"gene_sets": {"sets": SETS, **options}}})


def test_genes_of_sets_keep_the_library_of_the_whole_table() -> None:
    rows = counts()
    transform = fit_tables({"rna": table()}, params())["rna"]
    assert transform.names == ("G1", "G2", "G4", "G7", "G9")
    everything = fit_tables({"rna": table()}, TableParams())["rna"]
    chosen = [everything.names.index(name) for name in transform.names]
    for row in rows[:5]:
        np.testing.assert_array_equal(transform.apply(row, GENES), everything.apply(row, GENES)[chosen])
    two = TableParams.model_validate({"rna": {"gene_sets": {"sets": SETS}, "genes": 2}})
    assert set(fit_tables({"rna": table()}, two)["rna"].names) < set(transform.names)


@pytest.mark.parametrize("standardise", ["training", "per_cohort"])
def test_scores_are_standardised_means_of_standardised_genes(standardise: str) -> None:
    rows, cohorts = counts(), table(2).cohorts
    options = {"standardise": standardise}
    plain = fit_tables({"rna": table(2)}, TableParams.model_validate({"rna": options}))["rna"]
    z = np.stack([plain.apply(row, GENES, c) for row, c in zip(rows, cohorts, strict=True)]).astype(float)
    scored = TableParams.model_validate({"rna": {"gene_sets": {"sets": SETS, "use": "scores"}, **options}})
    transform = fit_tables({"rna": table(2)}, scored)["rna"]
    assert transform.names == ("first", "second", "lone")
    out = np.stack([transform.apply(row, GENES, c) for row, c in zip(rows, cohorts, strict=True)])
    for column, genes in enumerate((["G1", "G4", "G7"], ["G4", "G9"], ["G2"])):
        means = z[:, [plain.names.index(gene) for gene in genes]].mean(axis=1)
        np.testing.assert_allclose(out[:, column], (means - means.mean()) / means.std(), atol=2e-5)
    again = transform_from_json(json.loads(json.dumps(transform_to_json(transform))))
    assert again.names == transform.names
    assert again == transform


@pytest.mark.parametrize(
    ("rna", "said"),
    [
        ({"gene_sets": {"use": "scores"}}, "give one of the two"),
        ({"gene_sets": {"file": "a.gmt", "sets": SETS}}, "give one of the two"),
        ({"gene_sets": {"sets": {"A": []}}}, "gene set 'A' has no gene"),
        (
            {"gene_sets": {"sets": SETS, "use": "scores"}, "components": 3},
            "leave out 'genes' and 'components'",
        ),
    ],
)
def test_settings_that_do_not_belong_together(rna: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TableParams.model_validate({"rna": rna})


def test_a_file_is_read_before_anything_is_fitted(tmp_path: Path) -> None:
    (tmp_path / "sets.gmt").write_text("A\td\tG1\tG2\n")
    named = TableParams.model_validate({"rna": {"gene_sets": "sets.gmt"}})
    resolved = resolve_tables(named, [], tmp_path)
    assert fit_tables({"rna": table()}, resolved)["rna"].names == ("G1", "G2")
    assert TableParams.model_validate(resolved.model_dump()) == resolved  # a recipe is stored with its sets
    with pytest.raises(DataError, match="there are no gene sets"):
        fit_tables({"rna": table()}, named)


@pytest.mark.real
def test_hallmarks_of_survpath_in_porpoise(shared_data: Path) -> None:
    sets = read_gene_sets("survpath/hallmarks_signatures.csv", shared_data / "tcga")
    assert len(sets) == 50
    source = OmicsSource(path="porpoise/tcga_kirp_all_clean.csv.zip", suffix="_rnaseq")
    matrix = read_matrix(source, shared_data / "tcga")
    assert "in the rna table of 1557 genes" in overlap_note(sets, list(matrix.columns), 5)
    signatures = read_gene_sets("porpoise/signatures.csv", shared_data / "tcga")
    assert next(iter(signatures)) == "Tumor Suppressor Genes"
    assert set(matrix.columns) <= {gene for genes in signatures.values() for gene in genes}
    scored = {"gene_sets": {"sets": {name: list(genes) for name, genes in sets.items()}, "use": "scores"}}
    whole = LocalTable(matrix.to_numpy(), tuple(matrix.columns), ("KIRP",) * len(matrix))
    transform = fit_tables({"rna": whole}, TableParams.model_validate({"rna": scored}))["rna"]
    assert set(transform.names) <= set(sets)
    assert len(transform.names) >= 45
