r"""Modulations: how the branches of a model are kept from letting one of them learn alone.

GradMod is equation 7 and 8 of Path-GPTOmic (arXiv 2403.11375) with the implicit factor made explicit,

.. math:: c = \min(1 - \tanh(\alpha(\rho - 1)), 1),

which is 1 up to a ratio of 1 and falls from there without a jump. OGM-GE (Peng et al., CVPR 2022, arXiv 2203.15332,
equations 10 and 12) has :math:`c = 1 - \tanh(\alpha \rho)` for :math:`\rho > 1`, else 1, which jumps at 1, and adds
noise with the standard deviation of each gradient; it acts up to an epoch. The published code scales only the weights
of convolutions, of which a branch here may have none: all parameters of a branch are scaled, as in Path-GPTOmic.

``none``, ``aux_losses`` and ``modality_dropout`` need nothing but their parameters: the model gives its branches
heads of their own or hides branches.
"""

from __future__ import annotations

import math

from torch import Tensor

from equipoise.models.gptomic.entries import GradModParams, ModulationParams, OgmGeParams
from equipoise.models.gptomic.protocol import ObjectiveInputs


class Modulation:
    """A modulation that leaves every coefficient at 1; the base of the others.

    Parameters
    ----------
    params
        Of the entry.
    """

    noise = False

    def __init__(self, params: ModulationParams) -> None:
        self.params = params
        # Parameters of other packages need not derive from ours.
        self.slows = bool(getattr(params, "slows", False))
        self.ratio: str = getattr(params, "ratio", "share_sum")
        self.acts_on: str = getattr(params, "acts_on", "lr")
        self._start: int = getattr(params, "start", 0)
        self._stop: int | None = getattr(params, "stop", None)

    def acts(self, epoch: int) -> bool:
        """Whether it slows branches in this epoch, from 0; both ends of the window included."""
        return self.slows and self._start <= epoch and (self._stop is None or epoch <= self._stop)

    def coefficient(self, ratio: float) -> float:
        """1."""
        return 1.0

    def term(self, inputs: ObjectiveInputs) -> Tensor | None:
        """Nothing."""
        return None


class GradMod(Modulation):
    """The modulation of Path-GPTOmic."""

    def __init__(self, params: GradModParams) -> None:
        super().__init__(params)
        self.alpha = params.alpha

    def coefficient(self, ratio: float) -> float:
        """1 up to a ratio of 1, then falling to 0; 1 where the ratio is not known."""
        if math.isnan(ratio):
            return 1.0
        return min(1 - math.tanh(self.alpha * (ratio - 1)), 1.0)


class OgmGe(Modulation):
    """On-the-fly gradient modulation with generalisation enhancement."""

    def __init__(self, params: OgmGeParams) -> None:
        super().__init__(params)
        self.alpha, self.noise = params.alpha, params.noise

    def coefficient(self, ratio: float) -> float:
        """1 up to a ratio of 1, ``1 - tanh(alpha ratio)`` above."""
        return 1 - math.tanh(self.alpha * ratio) if ratio > 1 else 1.0
