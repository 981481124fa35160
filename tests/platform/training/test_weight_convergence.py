"""Whether learned weights moved and settled, from a history."""

from __future__ import annotations

import math

import pytest

from equipoise.platform.registry import entries
from equipoise.platform.training.weight_convergence import learns_weights, weight_convergence


def history(*weights: tuple[float, float], key: str = "weight") -> list[dict[str, float]]:
    return [{f"{key}/a": a, f"{key}/b": b} for a, b in weights]


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ([(1, 1), (1.01, 1), (1.01, 0.99), (1.01, 0.99)], "did not move"),
        ([(1, 1), (2, 1), (3, 1), (6, 1)], "had not converged"),
        ([(1, 1), (2, 0.5), (2.1, 0.45), (2.2, 0.45)], ""),
        ([(1, 1), (1, 0.01), (1, 0.005), (1, 0.005)], ""),  # what goes to 0 is compared with the mean weight
        ([(1, 1), (5, 1)], ""),  # too few epochs to say
        ([], ""),
    ],
)
def test_what_the_weights_did(weights: list[tuple[float, float]], problem: str) -> None:
    found = weight_convergence(history(*weights), ["a", "b"])
    assert found.problem == problem
    assert found.converged == (not problem and len(weights) > 2)


def test_weights_of_losses_go_before_those_after_aggregation() -> None:
    """An aggregator's coefficients vary from step to step; only what the weighting learned can converge."""
    rows = [
        own | combined
        for own, combined in zip(
            history(*[(1, 1), (2, 1), (2, 1), (2, 1)], key="loss_weight"),
            history(*[(1, 1), (9, 1), (1, 9), (9, 1)]),
            strict=True,
        )
    ]
    assert weight_convergence(rows, ["a", "b"]).drift == 0
    assert math.isnan(weight_convergence([{"lr": 1.0}], ["a", "b"]).moved)


def test_which_weightings_learn() -> None:
    learn = {name for name in entries("weightings") if learns_weights(name)}
    assert learn == {"uncertainty", "imtl_l", "auto_lambda", "gradnorm", "famo"}
    assert not learns_weights("of another package")
