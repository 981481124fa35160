"""The joint multi-task transformer, as published.

Source: "Joint multi-task learning improves weakly-supervised biomarker prediction in computational
pathology", arXiv 2403.03891 (MICCAI 2024). Tile features are projected, attend to each other in an encoder,
and are read by a decoder whose queries are one learned token per task; a linear head maps each token to the
task's outputs. There is no positional encoding: a case is a set of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import JointParams
from equipoise.models.joint.attention import DecoderLayer, EncoderLayer


class JointTransformer(MultiTaskModel):
    """Projection + ReLU → encoder over tiles → decoder with a token per task → linear heads.

    Parameters
    ----------
    params
        Sizes; the defaults are the published ones. With 768 features and two tasks of 2 and 5 outputs the
        model has 6,218,503 parameters, 6,215,040 of them shared.
    shape, heads
        As in :class:`~equipoise.models.base.MultiTaskModel`. Tokens attend to each other in the decoder, as
        published, so a task's output depends on which other tasks there are, but not on their labels.
    """

    def __init__(self, params: JointParams, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        super().__init__(shape, heads)
        sizes = (params.dim, params.heads, params.feedforward, params.dropout)
        self.project = nn.Linear(shape.features, params.dim)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(params.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(params.decoder_layers))
        self.tokens = nn.ParameterList(torch.rand(params.dim) for _ in heads)
        self.build_heads(params.dim)

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """The decoder's output of every task's token."""
        x_BND, tokens_BTD = self._tiles_and_tokens(batch)
        for layer in self.decoder:
            tokens_BTD = layer(tokens_BTD, x_BND, batch.key_mask)
        return [tokens_BTD[:, i] for i in range(len(self.task_heads))]

    def _tiles_and_tokens(self, batch: CaseBatch) -> tuple[Tensor, Tensor]:
        """What the decoder reads: ``[B, N, D]`` encoded tiles and ``[B, T, D]`` the tokens of the tasks."""
        x_BND = nn.functional.relu(self.project(batch.bags))
        for layer in self.encoder:
            x_BND = layer(x_BND, batch.key_mask)
        return self.representation(x_BND), torch.stack(list(self.tokens)).expand(batch.bags.shape[0], -1, -1)

    @property
    def has_attention(self) -> bool:
        """Always."""
        return True

    def attention(self, batch: CaseBatch) -> dict[str, Tensor]:
        """task → ``[B, N]`` weights with which its token reads the tiles in the last decoder layer, mean over heads.

        The encoder has mixed tiles before: a weight belongs to a tile and what it has taken from others.
        """
        x_BND, tokens_BTD = self._tiles_and_tokens(batch)
        *before, last = self.decoder
        for layer in before:
            tokens_BTD = layer(tokens_BTD, x_BND, batch.key_mask)
        assert isinstance(last, DecoderLayer)
        weights_BTN = last.multihead_attn.weights(last.among_tokens(tokens_BTD), x_BND, batch.key_mask)
        return {head.name: weights_BTN[:, i] for i, head in enumerate(self.task_heads)}

    def task_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """The task's token and its head."""
        return [self.tokens[index], *super().task_modules(index)]
