"""FedNova: Wang et al. 2020, "Tackling the objective inconsistency problem" (arXiv 2007.07481), section 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel

from equipoise.platform.federation.strategies.strategy import Combined, State, Strategy
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from equipoise.platform.federation.update import ClientUpdate


class FedNova(Strategy):
    """w ← w + η τ_eff Σ p_i Δ_i / a_i with τ_eff = Σ p_i a_i.

    a_i is what τ steps with momentum ρ amount to, (τ − ρ (1 − ρ^τ) / (1 − ρ)) / (1 − ρ); τ for plain steps.
    """

    def __init__(self, params: BaseModel, momentum: float = 0.0) -> None:
        super().__init__(params)
        self.momentum = momentum

    def amount(self, steps: int) -> float:
        """a_i."""
        rho = self.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)

    def factor(self, update: ClientUpdate) -> float:
        """1 / a_i."""
        return 1 / self.amount(update.steps) if update.steps > 0 else 0.0

    def step(self, schema: Schema, reference: np.ndarray, combined: Combined, state: State) -> np.ndarray:
        """Scale the mean step back to the mean number of steps."""
        steps = {group: combined.mean(group, lambda p: self.amount(p.steps)) for group in schema.groups}
        return reference + self.server_lr * schema.expand(steps) * combined.vector
