"""What every RNA encoder refuses, and that its random numbers belong to the sample."""

import numpy as np
import pytest

from equipoise.models.rna.entries import ENTRIES, RnaEncoderParams
from equipoise.models.rna.protocol import KINDS, check_profiles, sample_generator

COUNTS = np.array([[0, 3], [5, 1]], np.float32)


def test_z_scores_are_refused_with_the_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"'e' cannot use z-scores.*\(it uses counts, log\)\n.*before it was stand"
    ):
        check_profiles("e", {"log", "counts"}, COUNTS, ["a", "b"], "zscore")
    hidden = np.array([[0.3, -1.2], [0.1, 2.0]], np.float32)
    with pytest.raises(ValueError, match=r"b of sample 0 is -1\.2: these look like z-scores\n"):
        check_profiles("e", {"log", "counts"}, hidden, ["a", "b"], "log")
    check_profiles("e", {"zscore"}, hidden, ["a", "b"], "zscore")


@pytest.mark.parametrize(
    ("values", "genes", "kind", "said"),
    [
        (COUNTS, ["a"], "counts", r"not \(2, 2\) and 1"),
        (COUNTS, ["a", "a"], "counts", "gene 'a' stands twice"),
        (COUNTS, ["a", "b"], "fpkm", "unknown kind of expression 'fpkm'; known: counts, tpm, log, zscore"),
        (COUNTS, ["a", "b"], "tpm", "'e' uses counts, not 'tpm'"),
        (np.array([[0, np.inf]], np.float32), ["a", "b"], "counts", "infinite"),
    ],
)
def test_other_refusals(values: np.ndarray, genes: list[str], kind: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_profiles("e", {"counts"}, values, genes, kind)


def test_gaps_are_allowed() -> None:
    check_profiles("e", {"counts"}, np.array([[np.nan, 1]], np.float32), ["a", "b"], "counts")


def test_random_numbers_follow_seed_and_values() -> None:
    first = sample_generator(COUNTS[0], 3).random(4)
    np.testing.assert_array_equal(sample_generator(COUNTS[0].copy(), 3).random(4), first)
    assert not np.allclose(sample_generator(COUNTS[0], 4).random(4), first)
    assert not np.allclose(sample_generator(COUNTS[1], 3).random(4), first)


def test_entries_say_kinds_that_exist_and_paths_that_are_parameters() -> None:
    for summary, params, _ in ENTRIES.values():
        assert summary
        assert issubclass(params, RnaEncoderParams)
        assert params.accepts
        assert params.accepts <= set(KINDS)
        assert set(params.paths) <= set(params.model_fields)
