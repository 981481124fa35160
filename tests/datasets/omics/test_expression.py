"""Kinds of RNA values: the way back to abundances, what contradicts a declaration, and cohorts of several kinds."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from equipoise.datasets.errors import DataError, DataWarning
from equipoise.datasets.omics.expression import (
    Expression,
    check_kind,
    consistency_notes,
    detect_kind,
    expression_of,
    to_linear,
)
from equipoise.datasets.omics.matrix import read_matrix
from equipoise.datasets.params import OmicsSource


def counts(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(np.exp(rng.normal(3, 1.5, (30, 8)))).astype(np.float32)


COUNTS = counts()
TPM = (COUNTS / COUNTS.sum(axis=1, keepdims=True) * 1e6 + 0.25).astype(np.float32)
Z = ((COUNTS - COUNTS.mean(axis=0)) / COUNTS.std(axis=0)).astype(np.float32)
#: Kind → values of that kind.
EXAMPLES = {"counts": COUNTS, "tpm": TPM, "log": np.log2(TPM + 1), "zscore": Z}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_values_are_what_they_look_like_and_no_contradiction_of_it(kind: str) -> None:
    assert detect_kind(EXAMPLES[kind]) == kind
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_kind(EXAMPLES[kind], kind)


@pytest.mark.parametrize(
    ("declared", "values", "problem"),
    [
        ("counts", "tpm", "values are not whole, the first 61905"),
        ("counts", "zscore", "values are negative"),
        ("counts", "log", "values are not whole"),
        ("tpm", "zscore", "values are negative"),
        ("log", "zscore", "values are below the logarithm of 1"),
        ("log", "counts", "values are above 50"),
        ("log", "tpm", "values are above 50"),
        ("zscore", "counts", "no value is negative"),
        ("zscore", "log", "no value is negative"),
    ],
)
def test_contradictions_are_refused_with_place_and_remedy(declared: str, values: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        check_kind(EXAMPLES[values], declared, where="cohort 'A', rna.csv")  # type: ignore[arg-type]
    assert error.value.where == "cohort 'A', rna.csv"
    assert "kind: " in str(error.value.fix)


def test_the_first_wrong_value_is_named() -> None:
    values = COUNTS.copy()
    values[2, 3] = -7
    values[5, 0] = -1
    with pytest.raises(DataError, match=r"2 values are negative, the first -7 \(p2, g3\)"):
        check_kind(values, "counts", patients=[f"p{i}" for i in range(30)], genes=[f"g{i}" for i in range(8)])


@pytest.mark.parametrize(
    ("declared", "values", "warning"),
    [("tpm", COUNTS, "are they counts"), ("tpm", np.log1p(TPM), "are they logarithms")],
)
def test_what_is_possible_and_rarely_meant_warns(declared: str, values: np.ndarray, warning: str) -> None:
    with pytest.warns(DataWarning, match=warning):
        check_kind(values, declared)  # type: ignore[arg-type]


def test_a_pseudocount_moves_the_lowest_logarithm() -> None:
    xena = np.log2(np.maximum(TPM - 0.25, 0) + 0.001)
    assert xena.min() == pytest.approx(np.log2(0.001), abs=1e-4)
    check_kind(xena, "log", base=2, pseudocount=0.001)
    with pytest.raises(DataError, match="below the logarithm of 1"):
        check_kind(xena, "log", base=2)
    with pytest.raises(DataError, match=r"below the logarithm of 0\.1"):
        check_kind(xena, "log", base=2, pseudocount=0.1)


@pytest.mark.parametrize(("base", "log"), [(2, np.log2), (10, np.log10), (np.e, np.log)])
@pytest.mark.parametrize("pseudocount", [1.0, 0.001])
def test_abundances_come_back_from_logarithms(base: float, log: np.ufunc, pseudocount: float) -> None:
    values = log(TPM.astype(np.float64) + pseudocount)
    values[0, 0] = np.nan
    back = to_linear(values, "log", base, pseudocount)
    assert np.isnan(back[0, 0])
    np.testing.assert_allclose(back.ravel()[1:], TPM.ravel()[1:], rtol=1e-5)
    assert to_linear(log(np.array([pseudocount / 2])), "log", base, pseudocount)[0] == 0  # not below 0


def test_what_has_no_way_back_is_refused() -> None:
    assert to_linear(TPM, "tpm") is TPM
    with pytest.raises(DataError, match="z-scores cannot be turned into abundances"):
        to_linear(Z, "zscore")
    with pytest.raises(DataError, match="only if their base is known"):
        to_linear(np.log2(TPM + 1), "log")


def test_a_source_decides_and_otherwise_the_values() -> None:
    source = OmicsSource.model_validate({"path": "x", "kind": "log", "log_base": 2})
    declared = expression_of(np.log2(TPM + 1), source, where="x")
    assert (declared.kind, declared.base, declared.declared, declared.scale) == ("log", 2, True, "none")
    assert declared.text == "logarithms log2(x + 1)"
    detected = expression_of(COUNTS, OmicsSource(path="x", kind="auto"), where="x")  # type: ignore[arg-type]
    assert (detected.kind, detected.declared, detected.scale) == ("counts", False, "log_cpm")
    with pytest.raises(DataError, match="not whole"):
        expression_of(TPM, OmicsSource(path="x", kind="counts"), where="x")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"log_base": 2}, "write kind: log"),
        ({"kind": "tpm", "pseudocount": 0.001}, "write kind: log"),
        ({"kind": "log", "pseudocount": 0.001}, "needs the base"),
        ({"kind": "rpkm"}, "'counts', 'tpm', 'log' or 'zscore'"),
    ],
)
def test_options_that_do_not_belong_together(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        OmicsSource.model_validate({"path": "x", **options})


def test_cohorts_of_one_kind_are_a_note() -> None:
    one, seen = Expression("tpm"), Expression("tpm", declared=False)
    assert consistency_notes({"A": one, "B": one}, frozenset("A")) == [
        "rna of A, B: abundances (TPM, FPKM or CPM)"
    ]
    assert (
        "declared for A; B: they look like it" in consistency_notes({"A": one, "B": seen}, frozenset("A"))[0]
    )
    assert "declare them with kind: tpm" in consistency_notes({"A": seen}, frozenset("A"))[0]


def test_cohorts_of_several_kinds() -> None:
    log2, log10 = Expression("log", 2), Expression("log", 10)
    with pytest.raises(DataError, match=r"cohort B: .* log10\(x \+ 1\), those of A .* log2\(x \+ 1\)"):
        consistency_notes({"A": log2, "B": log10}, frozenset("A"))
    seen = Expression("counts", declared=False)
    with pytest.raises(DataError, match=r"declare what B holds \(kind: log\)"):
        consistency_notes({"A": log2, "B": seen}, frozenset("AB"))
    with pytest.warns(DataWarning, match="cohort B: rna values look like counts"):
        notes = consistency_notes({"A": log2, "B": seen}, frozenset("A"))
    assert "all cohorts must be on one scale" in notes[0]
    # The base that nobody said is no contradiction.
    assert len(consistency_notes({"A": log2, "B": Expression("log", declared=False)}, frozenset("AB"))) == 1


@pytest.mark.real
def test_porpoise_holds_z_scores_of_abundances(shared_data: Path) -> None:
    source = OmicsSource(path="tcga_kirp_all_clean.csv.zip", suffix="_rnaseq", kind="zscore")
    matrix = read_matrix(source, shared_data / "tcga" / "porpoise")
    values = matrix.to_numpy()
    assert expression_of(values, source, where="KIRP").scale == "none"
    assert detect_kind(values) == "zscore"
    names = {"patients": list(matrix.index), "genes": list(matrix.columns)}
    for kind in ("counts", "tpm", "log"):
        with pytest.raises(DataError, match=rf"declared as .* \(TCGA-.*, {matrix.columns[0]}\)"):
            check_kind(values, kind, **names)  # type: ignore[arg-type]
