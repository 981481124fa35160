"""The head of a task on text: embedding of a case, and its nearness to the labels of the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from equipoise.models.text.losses import unit
from equipoise.models.text.target import TextTarget

if TYPE_CHECKING:
    from equipoise.models.batch import TaskHead


class TextHead(nn.Module):
    """LayerNorm → Linear → length 1 → minus distance to each label, over the spread: ``[B, K]``.

    The bank is no parameter and not in the state dictionary: it comes with the targets, which are hashed.
    """

    bank: Tensor

    def __init__(self, dim: int, target: TextTarget) -> None:
        super().__init__()
        self.target = target
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, target.dim)
        self.register_buffer("bank", target.embeddings(), persistent=False)

    def embed(self, x_BE: Tensor) -> Tensor:
        """``[B, d]`` of length 1, in the space of the labels."""
        z = self.project(self.norm(x_BE))
        return unit(z if z.dtype == torch.float64 else z.float())  # half precision stops here

    def forward(self, x_BE: Tensor) -> Tensor:
        """``[B, K]``, whose softmax are the probabilities of the labels."""
        z = self.embed(x_BE)
        with torch.autocast(z.device.type, enabled=False):
            return self.target.logits(z, self.bank.to(z))


def head_layer(dim: int, head: TaskHead) -> nn.Module:
    """What turns a vector of length ``dim`` into the outputs of a task."""
    return nn.Linear(dim, head.outputs) if head.text is None else TextHead(dim, head.text)
