"""Several trained models as one: averages of probabilities, values and standardised risks.

Log risks of Cox's model have no unit that members share: each member's are standardised by its mean and standard
deviation over its own training patients before they are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, TaskHead


class Ensemble(nn.Module):
    """Members of one architecture and one set of tasks, trained on different patients.

    Parameters
    ----------
    members
        Trained models, or models whose weights are loaded into the ensemble afterwards.

    Raises
    ------
    ValueError
        If there is no member.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, members: Sequence[MultiTaskModel]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        self.members = nn.ModuleList(members)
        self.task_heads = members[0].task_heads
        shape = (len(members), len(self.task_heads))
        self.register_buffer("centre", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))

    def standardise(self, member: int, outputs: Mapping[str, Tensor]) -> None:
        """Fix mean and standard deviation of a member's log risks from its outputs for its own training patients."""
        for index, head in enumerate(self.task_heads):
            if head.compares_patients:
                risk = outputs[head.name][:, 0].double()
                spread = risk.std(correction=0)
                self.centre[member, index] = risk.mean()
                # A member that gives everybody the same risk says nothing, and nothing is divided by 0.
                self.spread[member, index] = spread if spread > 0 else 1.0

    def forward(self, batch: CaseBatch) -> dict[str, Tensor]:
        """Outputs per task as those of a member: log probabilities, scaled values, risks or logits of hazards."""
        return self._joined([member(batch) for member in self.members], range(len(self.members)))

    def of_member(self, member: int, batch: CaseBatch) -> dict[str, Tensor]:
        """Outputs of one member on the scale of the ensemble."""
        return self._joined([self.members[member](batch)], [member])

    @property
    def has_attention(self) -> bool:
        """Where its members have one."""
        return all(member.has_attention for member in self._models())

    def attention(self, batch: CaseBatch) -> dict[str, Tensor]:
        """The mean of the members' weights."""
        each = [member.attention(batch) for member in self._models()]
        return {name: torch.stack([weights[name] for weights in each]).mean(dim=0) for name in each[0]}

    def latents(self, batch: CaseBatch) -> dict[str, Tensor]:
        """What the heads of the members read, side by side: ``[B, members x dim]`` per task."""
        parts = [member.latents(batch) for member in self._models()]
        return {head.name: torch.cat([part[head.name] for part in parts], dim=1) for head in self.task_heads}

    def outputs(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs from what :meth:`latents` returned."""
        count = len(self.members)
        apart = {name: latent.chunk(count, dim=1) for name, latent in latents.items()}
        read = [
            member.outputs({name: parts[k] for name, parts in apart.items()})
            for k, member in enumerate(self._models())
        ]
        return self._joined(read, range(count))

    def _models(self) -> list[MultiTaskModel]:
        return cast("list[MultiTaskModel]", list(self.members))

    def _joined(self, outputs: Sequence[Mapping[str, Tensor]], members: Sequence[int]) -> dict[str, Tensor]:
        return {
            head.name: self._mean(
                head, index, torch.stack([part[head.name] for part in outputs]), list(members)
            )
            for index, head in enumerate(self.task_heads)
        }

    def _mean(self, head: TaskHead, index: int, out_MBK: Tensor, members: list[int]) -> Tensor:
        if head.kind in ("binary", "multiclass"):
            # Log probabilities are logits of the mean probabilities.
            return out_MBK.log_softmax(dim=2).logsumexp(dim=0) - torch.tensor(float(len(members))).log()
        if head.kind == "regression":
            return out_MBK.mean(dim=0)
        if not head.compares_patients:
            return torch.logit(out_MBK.sigmoid().mean(dim=0), eps=1e-6)
        centre, spread = (part[members, index, None, None].to(out_MBK) for part in (self.centre, self.spread))
        return ((out_MBK - centre) / spread).mean(dim=0)


class Member(nn.Module):
    """One member of an ensemble, on the scale of the ensemble."""

    def __init__(self, ensemble: Ensemble, member: int) -> None:
        super().__init__()
        self.ensemble, self.member = ensemble, member

    def forward(self, batch: CaseBatch) -> dict[str, Tensor]:
        """As :meth:`Ensemble.forward`."""
        return self.ensemble.of_member(self.member, batch)
