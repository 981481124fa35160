"""Tokens of rows: what a covariate says reaches them, and how they start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from equipoise.models.batch import CaseShape
from equipoise.models.modaltune.entries import LinearTokensParams, PerceptronTokensParams
from equipoise.models.modaltune.tokens import LinearTokens, PerceptronTokens

WIDTH = 64


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_tokens_are_linear_in_the_row_around_a_constant() -> None:
    tokens = LinearTokens(
        LinearTokensParams.model_validate({"tokens": 3}), CaseShape(0, {"clinical": 2}), "clinical", WIDTH
    )
    rows = torch.randn(5, 2)
    with torch.no_grad():
        constant, one, two = tokens(torch.zeros(1, 2)), tokens(rows), tokens(2 * rows)
    assert one.shape == (5, 3, WIDTH)
    torch.testing.assert_close(two - constant, 2 * (one - constant))
    assert float(constant.std()) == pytest.approx(1.0, abs=0.15)
    assert float((one - constant).std() / rows.std()) == pytest.approx(0.3, abs=0.1)


def test_how_old_a_patient_is_survives_normalisation_behind_the_token() -> None:
    """Standardised ages from -2 to 2: after LayerNorm, a linear readout recovers them, not their sign alone."""
    age = torch.linspace(-2, 2, 41)[:, None]
    tokens = LinearTokens(
        LinearTokensParams.model_validate({}), CaseShape(0, {"clinical": 1}), "clinical", WIDTH
    )
    with torch.no_grad():
        read = nn.functional.layer_norm(tokens(age)[:, 0], (WIDTH,)).double()
    design = torch.cat([read[:, :3], torch.ones(41, 1)], dim=1).double()
    fitted = design @ torch.linalg.lstsq(design, age.double()).solution
    left = float((fitted - age).square().mean() / age.square().mean())
    # The best function of the sign alone leaves a quarter.
    assert left < 0.02


def test_a_perceptron_is_its_layers() -> None:
    params = PerceptronTokensParams.model_validate({"tokens": 2, "hidden": 7, "output_scale": 0.1})
    tokens = PerceptronTokens(params, CaseShape(0, {"rna": 5}), "rna", WIDTH)
    rows = torch.randn(4, 5)
    first, last = tokens.hidden[1], tokens.project
    assert isinstance(first, nn.Linear)
    expected = (rows @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(tokens.eval()(rows), expected.view(4, 2, WIDTH))
    tokens.train()
    assert not torch.equal(tokens(rows), tokens(rows))  # dropout
    assert float(last.weight.detach().std()) == pytest.approx(0.1 * 7**-0.5, rel=0.1)
