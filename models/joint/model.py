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

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import JointParams
from equipoise.models.joint.attention import DecoderLayer, EncoderLayer


class JointTransformer(nn.Module):
    """Projection + ReLU → encoder over tiles → decoder with a token per task → linear heads.

    Parameters
    ----------
    params
        Sizes; the defaults are the published ones. With 768 features and two tasks of 2 and 5 outputs the
        model has 6,218,503 parameters, 6,215,040 of them shared.
    shape
        Widths of the data; only the tile features are read.
    heads
        Tasks, in the order of tokens and heads in the state dictionary. Tokens attend to each other in the
        decoder, as published, so a task's output depends on which other tasks there are, but not on their
        labels.

    Raises
    ------
    ValueError
        If there is no task or a name comes twice.
    """

    def __init__(self, params: JointParams, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        super().__init__()
        names = [head.name for head in heads]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a joint model needs at least one task and distinct names, not {names}")
        sizes = (params.dim, params.heads, params.feedforward, params.dropout)
        self.task_heads = tuple(heads)
        self.project = nn.Linear(shape.features, params.dim)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(params.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(params.decoder_layers))
        # Lists, not dictionaries: a module cannot have children called "a.b" or "keys", a task can.
        self.tokens = nn.ParameterList(torch.rand(params.dim) for _ in heads)
        self.heads = nn.ModuleList(nn.Linear(params.dim, head.outputs) for head in heads)

    def forward(self, batch: CaseBatch) -> dict[str, Tensor]:
        """Outputs per task, ``[B, K]``: logits, scaled values or log risks."""
        return self.outputs(self.latents(batch))

    def latents(self, batch: CaseBatch) -> dict[str, Tensor]:
        """What each head reads: the decoder's output of the task's token, ``[B, dim]``.

        Raises
        ------
        ValueError
            If the tiles have another number of features than the model was built for.
        """
        width, built_for = batch.bags.shape[-1], self.project.in_features
        if width != built_for:
            raise ValueError(
                f"tiles have {width} features, the model was built for {built_for}: another encoder?"
            )
        x_BND = nn.functional.relu(self.project(batch.bags))
        for layer in self.encoder:
            x_BND = layer(x_BND, batch.key_mask)
        tokens_BTD = torch.stack(list(self.tokens)).expand(len(batch), -1, -1)
        for layer in self.decoder:
            tokens_BTD = layer(tokens_BTD, x_BND, batch.key_mask)
        return {head.name: tokens_BTD[:, i] for i, head in enumerate(self.task_heads)}

    def outputs(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Apply the heads to what :meth:`latents` returned."""
        return {
            head.name: layer(latents[head.name])
            for head, layer in zip(self.task_heads, self.heads, strict=True)
        }

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that all tasks use, which balancing acts on: projection, encoder, decoder."""
        return [p for module in (self.project, self.encoder, self.decoder) for p in module.parameters()]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The task-specific parameters, its token and its head.

        Raises
        ------
        KeyError
            If the model has no such task.
        """
        for head, token, layer in zip(self.task_heads, self.tokens, self.heads, strict=True):
            if head.name == task:
                return [token, *layer.parameters()]
        raise KeyError(f"no task {task!r}; the model has {', '.join(head.name for head in self.task_heads)}")
