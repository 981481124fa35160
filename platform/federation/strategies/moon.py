"""MOON: Li, He and Song 2021, "Model-contrastive federated learning" (arXiv 2103.16257), equation 3."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.platform.errors import StudyError
from equipoise.platform.federation.entries import MoonParams
from equipoise.platform.federation.strategies.strategy import Strategy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from equipoise.models.batch import CaseBatch
    from equipoise.platform.federation.local import LocalRun

LAST = "last"


class Moon(Strategy):
    """L_i(w) + μ ℓ with ℓ = −log e^{cos(z, z_server)/τ} / (e^{cos(z, z_server)/τ} + e^{cos(z, z_last)/τ}).

    z is what the heads read, of the model in training, of the broadcast model and of the client's own model of its
    last round; before the first they are one and ℓ has no gradient.
    """

    def __init__(self, params: MoonParams) -> None:
        super().__init__(params)
        self.mu, self.temperature = params.mu, params.temperature
        self._others: list[nn.Module] = []

    def prepare(self, run: LocalRun) -> None:
        """Two models that do not learn.

        Raises
        ------
        StudyError
            If the model does not say what its heads read.
        """
        if not hasattr(run.model, "latents"):
            raise StudyError(f"moon compares what heads read, and {type(run.model).__name__} does not say it")
        self._others = []
        for vector in (run.order.vector, run.state.get(LAST)):
            if vector is not None:
                other = copy.deepcopy(run.model).eval()
                run.schema.load(other, vector)
                self._others.append(other)

    def correct(self, run: LocalRun) -> None:
        """Add the gradient of the contrast on the batch of this step."""
        import torch

        if len(self._others) < 2 or self.mu == 0:
            return
        assert run.epoch is not None
        batch = run.epoch.batch
        with torch.no_grad():
            server, last = (_latents(other, batch) for other in self._others)
        loss = self.mu * contrast(_latents(run.model, batch), server, last, self.temperature)
        found = torch.autograd.grad(loss, run.parameters, allow_unused=True)
        blank = [torch.zeros_like(p) if g is None else g for g, p in zip(found, run.parameters, strict=True)]
        run.add_to_gradients(blank)

    def finish(self, run: LocalRun, delta: np.ndarray) -> dict[str, np.ndarray]:
        """Keep the local model."""
        run.state[LAST] = run.order.vector + delta
        self._others = []
        return {}


def contrast(z_BD: Tensor, server_BD: Tensor, last_BD: Tensor, temperature: float) -> Tensor:
    """Mean over cases of ℓ."""
    import torch
    from torch.nn.functional import cosine_similarity, cross_entropy

    cosines = [cosine_similarity(z_BD, other, dim=1) for other in (server_BD, last_BD)]
    logits_B2 = torch.stack(cosines, dim=1) / temperature
    return cross_entropy(logits_B2, torch.zeros(len(z_BD), dtype=torch.int64, device=z_BD.device))


def _latents(model: Any, batch: CaseBatch) -> Tensor:
    """``[B, D]`` what the heads read, of several tasks side by side."""
    import torch

    return torch.cat(list(model.latents(batch).values()), dim=1)
