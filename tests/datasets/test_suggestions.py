"""Near names and counted values in messages."""

from equipoise.datasets.suggestions import nearest, value_counts


def test_nearest() -> None:
    assert nearest("msi status", ["MSI Status", "Sex"]) == "; nearest: 'MSI Status'"
    assert nearest("Project", ["TCGA Project Code"]) == "; nearest: 'TCGA Project Code'"
    assert nearest("qqq", ["MSI Status"]) == ""


def test_value_counts() -> None:
    assert value_counts(["b", "a", "b", ""]) == "b 2, a 1, (empty) 1"
    assert value_counts(["b", "a", "b", ""], n=1) == "b 2, … (3 values)"
