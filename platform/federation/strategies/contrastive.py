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
    from equipoise.platform.federation.clients.local_training import ClientContext

LAST = "last"


class Moon(Strategy):
    """L_i(w) + μ ℓ with ℓ = −log e^{cos(z, z_server)/τ} / (e^{cos(z, z_server)/τ} + e^{cos(z, z_last)/τ}).

    z are the inputs of the heads, of the model in training, of the broadcast model and of the client's model of its
    last round; in the client's first round the latter two are equal and ℓ has no gradient.
    """

    def __init__(self, params: MoonParams) -> None:
        super().__init__(params)
        self.mu, self.temperature = params.mu, params.temperature
        self._others: list[nn.Module] = []

    def on_train_start(self, context: ClientContext) -> None:
        """Make copies of the broadcast model and of the client's last model.

        Raises
        ------
        StudyError
            If the model has no method ``latents``, which returns the inputs of its heads.
        """
        if not hasattr(context.model, "latents"):
            raise StudyError(
                f"moon compares the inputs of heads, and {type(context.model).__name__} has no method latents"
            )
        self._others = []
        for vector in (context.request.vector, context.state.get(LAST)):
            if vector is not None:
                other = copy.deepcopy(context.model).eval()
                context.schema.load(other, vector)
                self._others.append(other)

    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Add the gradient of the contrastive loss on the batch of this step."""
        import torch

        if len(self._others) < 2 or self.mu == 0:
            return
        assert context.epoch is not None
        batch = context.epoch.batch
        with torch.no_grad():
            server, last = (_latents(other, batch) for other in self._others)
        loss = self.mu * contrast(_latents(context.model, batch), server, last, self.temperature)
        gradients = torch.autograd.grad(loss, context.parameters, allow_unused=True)
        filled = [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(gradients, context.parameters, strict=True)
        ]
        context.add_to_gradients(filled)

    def on_train_end(self, context: ClientContext, delta: np.ndarray) -> dict[str, np.ndarray]:
        """Keep the local model."""
        context.state[LAST] = context.request.vector + delta
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
    """``[B, D]`` inputs of the heads, concatenated over the tasks."""
    import torch

    return torch.cat(list(model.latents(batch).values()), dim=1)
