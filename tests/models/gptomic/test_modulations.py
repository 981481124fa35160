"""Coefficients by their published formulas, and the windows in which they act."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from equipoise.models.gptomic.entries import MODULATIONS, GradModParams, ModulationParams, OgmGeParams
from equipoise.models.gptomic.modulations import GradMod, Modulation, OgmGe

RATIOS = np.concatenate([np.linspace(-3, 5, 81), [50.0, 1e6, math.inf]])


@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
def test_gradmod_is_one_up_to_a_ratio_of_one_and_continuous_there(alpha: float) -> None:
    modulation = GradMod(GradModParams(alpha=alpha))
    values = np.array([modulation.coefficient(ratio) for ratio in RATIOS])
    assert ((values >= 0) & (values <= 1)).all()
    assert (values[RATIOS <= 1] == 1).all()
    assert (np.diff(values[RATIOS >= 1]) <= 0).all()
    assert modulation.coefficient(1 + 1e-9) == pytest.approx(1, abs=1e-8)
    assert modulation.coefficient(1.7) == pytest.approx(1 - math.tanh(alpha * 0.7))
    assert modulation.coefficient(math.nan) == 1


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_ogm_ge_jumps_as_published(alpha: float) -> None:
    modulation = OgmGe(OgmGeParams(alpha=alpha))
    for ratio in RATIOS:
        published = 1 - math.tanh(alpha * max(ratio, 0)) if ratio > 1 else 1
        assert modulation.coefficient(ratio) == published
    assert modulation.coefficient(1.0) == 1
    assert modulation.coefficient(1 + 1e-12) == pytest.approx(1 - math.tanh(alpha))
    assert modulation.coefficient(math.nan) == 1


def test_windows_include_both_ends() -> None:
    window = GradMod(GradModParams(start=2, stop=4))
    assert [window.acts(epoch) for epoch in range(6)] == [False, False, True, True, True, False]
    assert [OgmGe(OgmGeParams()).acts(epoch) for epoch in (0, 50, 51)] == [True, True, False]
    assert all(GradMod(GradModParams()).acts(epoch) for epoch in (0, 1000))
    with pytest.raises(ValidationError, match="stop 1 is before start 2"):
        GradModParams(start=2, stop=1)


def test_entries_say_what_they_do() -> None:
    said = {
        name: (params.neutral, params.slows, params.needs_heads)
        for name, (_, params, _) in MODULATIONS.items()
    }
    assert said == {
        "none": (True, False, False),
        "gradmod": (False, True, False),
        "ogm_ge": (False, True, False),
        "aux_losses": (False, False, True),
        "modality_dropout": (False, False, False),
        "rank_distillation": (False, False, True),
    }
    base = Modulation(ModulationParams())
    assert base.coefficient(7.0) == 1
    assert not base.acts(0)
