"""Strategies of the client: a term or a correction of the local objective. The server averages.

FedProx and MOON keep a client near other models, SCAFFOLD and FedDyn correct its drift by vectors that client and
server keep.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.platform.errors import StudyError
from equipoise.platform.federation.entries import FedDynParams, FedProxParams, MoonParams, ScaffoldParams
from equipoise.platform.federation.params import LocalParams
from equipoise.platform.federation.strategies.strategy import AggregatedUpdate, ServerState, Strategy
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from torch import Tensor, nn

    from equipoise.platform.federation.clients.local_training import ClientContext


class FedProx(Strategy):
    """Clients minimise L_i(w) + μ/2 ‖w − w_server‖².

    Li et al. 2020, "Federated optimization in heterogeneous networks" (arXiv 1812.06127), equation 2.
    """

    def __init__(self, params: FedProxParams, local: LocalParams | None = None) -> None:
        super().__init__(params, local)
        self.mu = params.mu
        self._anchor: list[Tensor] = []

    def on_train_start(self, context: ClientContext) -> None:
        """Keep the broadcast weights."""
        self._anchor = context.tensors(context.request.vector)

    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Add the gradient of the proximal term."""
        context.pull_towards(self._anchor, self.mu)


CONTROL, CHANGE, LAST = "control", "control_change", "last"


class Moon(Strategy):
    """L_i(w) + μ ℓ with ℓ = −log e^{cos(z, z_server)/τ} / (e^{cos(z, z_server)/τ} + e^{cos(z, z_last)/τ}).

    z are the inputs of the heads, of the model in training, of the broadcast model and of the client's model of its
    last round; in the client's first round the latter two are equal and ℓ has no gradient. Li, He and Song 2021,
    "Model-contrastive federated learning" (arXiv 2103.16257), equation 3.
    """

    def __init__(self, params: MoonParams, local: LocalParams | None = None) -> None:
        super().__init__(params, local)
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
        batch = context.batch()
        with torch.no_grad():
            server, last = (_latents(other, batch) for other in self._others)
        latents = _latents(context.model, batch)
        if not latents.requires_grad:
            raise StudyError(
                f"moon compares the inputs of heads, and those of {type(context.model).__name__} with these settings "
                "are the table itself: no parameter changes them",
                where="federation.strategy",
                fix="choose another strategy, or a model with a hidden layer",
            )
        loss = self.mu * contrast(latents, server, last, self.temperature)
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


def _latents(model: Any, batch: Any) -> Tensor:
    """``[B, D]`` inputs of the heads, concatenated over the tasks."""
    import torch

    return torch.cat(list(model.latents(batch).values()), dim=1)


class Scaffold(Strategy):
    """Control variates c (server) and c_i (client) correct every local gradient by c − c_i.

    After K steps of size η from w to w_i: c_i⁺ = c_i − c + (w − w_i) / (K η). The server takes
    w ← w + η_s Δ and c ← c + Σ_S p_i (c_i⁺ − c_i) with the p_i of the mean Δ, so that corrections cancel in it; the
    paper has p_i = 1/N in both. Karimireddy et al. 2020, "Stochastic controlled averaging" (arXiv 1910.06378),
    option II.

    The ``flamby`` variant reproduces FLamby's published figures: no control variate at the server, gradients
    are corrected by −c_i, and at the *start* of a round c_i ← c_i + (w − w_i) / (K η) with the w_i of the client's
    last round, 0 in its first.
    """

    def __init__(self, params: ScaffoldParams, local: LocalParams | None = None) -> None:
        super().__init__(params, local)
        self.paper = params.variant == "paper"
        self.extra_arrays = frozenset({CHANGE} if self.paper else ())
        self._correction: list[Tensor] = []

    def init_state(self, schema: Schema) -> ServerState:
        """Control variate 0."""
        return {CONTROL: np.zeros(schema.size)} if self.paper else {}

    def broadcast(self, state: ServerState) -> dict[str, np.ndarray]:
        """The server's control variate."""
        return {name: vector.astype(np.float32) for name, vector in state.items()}

    def step(
        self, schema: Schema, reference: np.ndarray, aggregated: AggregatedUpdate, state: ServerState
    ) -> np.ndarray:
        """Average the weights, and move the control by the mean change of all clients able to train."""
        if self.paper:
            state[CONTROL] = state[CONTROL] + aggregated.arrays[CHANGE]
        return super().step(schema, reference, aggregated, state)

    def on_train_start(self, context: ClientContext) -> None:
        """Compute the correction of this round."""
        control = context.state.get(CONTROL, np.zeros(context.schema.size, np.float32))
        if self.paper:
            self._correction = context.tensors(context.request.arrays[CONTROL] - control)
            return
        if LAST in context.state:
            drift = context.only_trained(context.request.vector - context.state[LAST])
            control = control + drift / np.float32(context.state["last_steps"][0] * context.request.lr)
        context.state[CONTROL] = control
        self._correction = context.tensors(-control)

    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Add the correction."""
        context.add_to_gradients(self._correction)

    def on_train_end(self, context: ClientContext, delta: np.ndarray) -> dict[str, np.ndarray]:
        """Update the client's control variate and return its change."""
        if not self.paper:
            context.state[LAST] = context.request.vector + delta
            context.state["last_steps"] = np.array([context.steps], np.float32)
            return {}
        control = context.state.get(CONTROL, np.zeros(context.schema.size, np.float32))
        change = -context.request.arrays[CONTROL] - delta / np.float32(context.steps * context.request.lr)
        change = context.only_trained(np.where(context.learned, change, np.float32(0)))
        context.state[CONTROL] = control + change
        return {CHANGE: change}


DRIFT, GRADIENT = "drift", "gradient"


class FedDyn(Strategy):
    """Clients minimise L_i(w) − ⟨g_i, w⟩ + α/2 ‖w − w_server‖² and then g_i ← g_i − α (w_i − w_server).

    The server keeps h ← h − α Σ_S (w_i − w) / N and takes w ← mean_S w_i − h / α. All clients count equally. Acar et
    al. 2021, "Federated learning based on dynamic regularization" (arXiv 2111.04263), algorithm 1.
    """

    uniform = True

    def __init__(self, params: FedDynParams, local: LocalParams | None = None) -> None:
        super().__init__(params, local)
        self.alpha = params.alpha
        self._anchor: list[Tensor] = []
        self._gradient: list[Tensor] = []

    def init_state(self, schema: Schema) -> ServerState:
        """Drift 0."""
        return {DRIFT: np.zeros(schema.size)}

    def step(
        self, schema: Schema, reference: np.ndarray, aggregated: AggregatedUpdate, state: ServerState
    ) -> np.ndarray:
        """The mean of the clients, minus their accumulated drift."""
        delta = aggregated.vector.astype(np.float64)
        share = schema.expand({group: aggregated.share(group) for group in schema.groups})
        state[DRIFT] = state[DRIFT] - self.alpha * share * delta
        return reference + delta - state[DRIFT] / self.alpha

    def on_train_start(self, context: ClientContext) -> None:
        """Keep the broadcast weights and the client's gradient."""
        self._anchor = context.tensors(context.request.vector)
        self._gradient = context.tensors(
            context.state.get(GRADIENT, np.zeros(context.schema.size, np.float32))
        )

    def on_before_optimizer_step(self, context: ClientContext) -> None:
        """Add the gradient of the regulariser."""
        context.pull_towards(self._anchor, self.alpha)
        context.add_to_gradients(self._gradient, -1.0)

    def on_train_end(self, context: ClientContext, delta: np.ndarray) -> dict[str, np.ndarray]:
        """The client's gradient at its new weights."""
        gradient = context.state.get(GRADIENT, np.zeros(context.schema.size, np.float32))
        context.state[GRADIENT] = gradient - np.float32(self.alpha) * np.where(
            context.learned, delta, np.float32(0)
        )
        return {}
