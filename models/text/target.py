"""Targets of a task in the space of embeddings: the bank of its labels, and what a head and a loss need of it.

The **bank** holds one embedding of length 1 per class, or per interval of follow-up. A case is pulled towards the
embedding of its label; a censored case towards those of its own and the later intervals, each with the probability that
Kaplan and Meier's curve of the training patients gives it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equipoise.models.hazards import interval_of
from equipoise.models.text.losses import Kind, distances, loss_of_logits
from equipoise.models.text.projector import Projector


@dataclass(frozen=True)
class TextTarget:
    """The bank of one task.

    Parameters
    ----------
    sentences
        K sentences the bank was made of.
    bank
        ``[K, d]`` embeddings of length 1.
    loss, temperature, spread
        As in :class:`~equipoise.models.text.params.TextParams`.
    encoder
        Fingerprint of the text encoder.
    projector
        From text to embeddings.
    days, survival
        Kaplan-Meier curve of the training patients: the days of events, ascending, and the probability to survive each
        of them; empty for classes.
    seen
        K flags: labels that a training patient has; empty if all do. The others can be predicted, too.
    """

    sentences: tuple[str, ...]
    bank: tuple[tuple[float, ...], ...]
    loss: Kind
    temperature: float
    spread: float
    encoder: str
    projector: Projector
    days: tuple[float, ...] = ()
    survival: tuple[float, ...] = ()
    seen: tuple[bool, ...] = ()

    @property
    def dim(self) -> int:
        """Length d of an embedding."""
        return self.projector.outputs

    def embeddings(self) -> Tensor:
        """``[K, d]`` float32."""
        return torch.tensor(self.bank, dtype=torch.float32)

    def logits(self, z_BD: Tensor, bank_KD: Tensor) -> Tensor:
        """``[B, K]`` minus distance over spread, whose softmax are the probabilities of labels."""
        return -distances(z_BD, bank_KD, self.loss, self.temperature) / self.spread

    def losses(self, logits_BK: Tensor, shares_BK: Tensor) -> Tensor:
        """``[B]`` losses of cases with these shares of labels."""
        return loss_of_logits(logits_BK, shares_BK, self.loss, self.spread, self.dim, self.seen)

    def survival_shares(self, days_B: Tensor, event_B: Tensor, edges: Tensor) -> Tensor:
        """``[B, K]`` float64: the interval of an event; of a censored case the probability of each interval given that
        it survived until then."""
        days, edges = days_B.double(), edges.double()
        interval = interval_of(days, edges)
        count = len(edges) + 1
        seen = torch.nn.functional.one_hot(interval, count).double()
        inner = self._survival(edges, until=True)
        upper = torch.cat([inner, inner.new_zeros(1)])  # all that is left belongs to the last interval
        now = self._survival(days, until=False)[:, None]
        lower = torch.cat([inner.new_ones(1), inner])
        later = (torch.minimum(lower[None], now) - upper[None]).clamp(min=0)
        later = later * (torch.arange(count, device=days.device) >= interval[:, None])
        total = later.sum(dim=1, keepdim=True)
        last = torch.nn.functional.one_hot(torch.full_like(interval, count - 1), count).double()
        later = torch.where(total > 0, later / total.clamp(min=1e-300), last)
        return torch.where(event_B[:, None] > 0, seen, later)

    def _survival(self, at: Tensor, *, until: bool) -> Tensor:
        """The curve at given days, or just before them."""
        days = torch.tensor(self.days, dtype=torch.float64, device=at.device)
        curve = torch.tensor((1.0, *self.survival), dtype=torch.float64, device=at.device)
        return curve[torch.searchsorted(days, at.contiguous(), right=not until)]

    @property
    def sha256(self) -> str:
        """Of everything that the targets are."""
        return hashlib.sha256(json.dumps(self._plain(), sort_keys=True).encode()).hexdigest()

    def _plain(self) -> dict[str, Any]:
        return {
            "sentences": list(self.sentences),
            "bank": [list(row) for row in self.bank],
            "loss": self.loss,
            "temperature": self.temperature,
            "spread": self.spread,
            "encoder": self.encoder,
            "projector": self.projector.to_json(),
            "days": list(self.days),
            "survival": list(self.survival),
            **({"seen": list(self.seen)} if self.seen else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data with its hash."""
        return self._plain() | {"sha256": self.sha256}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TextTarget:
        """The inverse.

        Raises
        ------
        ValueError
            If bank or projector have another hash than when they were stored.
        """
        made = cls(
            tuple(data["sentences"]),
            tuple(tuple(row) for row in data["bank"]),
            data["loss"],
            data["temperature"],
            data["spread"],
            data["encoder"],
            Projector.from_json(data["projector"]),
            tuple(data["days"]),
            tuple(data["survival"]),
            tuple(data.get("seen", ())),
        )
        if made.sha256 != data["sha256"]:
            raise ValueError("the bank of label embeddings was changed after it was stored")
        return made
