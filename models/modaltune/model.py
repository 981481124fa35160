"""ModalTune: a frozen slide encoder, modal tokens that it exchanges information with, and one token per task.

Source: "ModalTune: fine-tuning slide-level foundation models with multi-modal information for multi-task learning in
digital pathology", arXiv 2503.17564 (ICCV 2025). Tokens of tasks and of modalities talk to the tiles between the
stages of the encoder (:mod:`equipoise.models.modaltune.interaction`), whose weights are never touched. A task's
embedding is class token + its task token + mean of the modal tokens → LayerNorm → Linear. Ours: all tasks in one pass,
linear heads, any set of modalities, tokens for what a patient lacks, no slides at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import ModalTuneParams
from equipoise.models.modaltune.frozen import FrozenStages
from equipoise.models.modaltune.interaction import Interaction
from equipoise.models.slide_encoders.protocol import SlideEncoder, SlideTokens
from equipoise.models.tables.modality_dropout import ModalityDropout
from equipoise.models.tables.rows import table_of

#: The modality of tiles, and those of tables in the order of their tokens.
WSI = "wsi"
TABLES = ("clinical", "rna", "cnv", "mutation")


class ModalTune(MultiTaskModel):
    """Tokens of tasks and modalities, interaction blocks around the stages of a frozen slide encoder, linear heads.

    Parameters
    ----------
    params
        Sizes and mode.
    shape
        Widths of the data: the slide encoder is used if there are tiles.
    heads
        Tasks.
    slide_encoder
        Makes the slide encoder.
    clinical, rna, cnv, mutation
        Make the tokens of a table from a shape, the name of the table and the width of a token.

    Raises
    ------
    ValueError
        If the data have neither tiles nor tables, or the encoder does not fit.
    """

    def __init__(
        self,
        params: ModalTuneParams,
        shape: CaseShape,
        heads: Sequence[TaskHead],
        *,
        slide_encoder: Callable[[], SlideEncoder],
        **makers: Callable[[CaseShape, str, int], nn.Module],
    ) -> None:
        super().__init__(shape, heads)
        tables = [name for name in TABLES if name in shape.omics]
        if not shape.features and not tables:
            raise ValueError("the data have neither tiles nor tables")
        self.params, self.widths = params, {name: shape.omics[name] for name in tables}
        self.frozen = (
            FrozenStages(slide_encoder(), shape.features, params.blocks, params.skipped, params.hidden_states)
            if shape.features
            else None
        )
        width = params.dim if self.frozen is None else self.frozen.width
        self.encoders = nn.ModuleDict({name: makers[name](shape, name, width) for name in tables})
        counts = [int(module.count) for module in self.encoders.values()]  # type: ignore[arg-type]
        self.tokens = nn.ParameterDict(
            {name: 0.02 * torch.randn(width) for name in ([WSI] if shape.features else []) + tables}
        )
        self.task_tokens = nn.ParameterList(nn.Parameter(0.02 * torch.randn(width)) for _ in heads)
        self.task_bias = nn.Parameter(torch.zeros(width))
        self.task_norm = nn.LayerNorm(width)
        #: Row 0 is the place of every task token.
        self.places = nn.Parameter(nn.init.trunc_normal_(torch.empty(1 + sum(counts), width), std=0.02))
        last = params.blocks - 1
        self.blocks = nn.ModuleList(
            Interaction(
                width,
                params.bottleneck,
                params.attention_heads,
                attends=i > 0,
                injects=params.mode != "ladder",
                extractors=3 if i == last and shape.features else 1,
                drop_path=params.drop_path,
                slides=bool(shape.features),
                doubled=params.reference_residual,
            )
            for i in range(params.blocks)
        )
        self.output_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, params.embedding)
        self.dropout = ModalityDropout(
            params.modality_dropout, list(self.tokens), shape, heads, by_class=params.class_balanced_dropout
        )
        self.build_heads(params.embedding)

    @property
    def reads_states(self) -> bool:
        """Whether hidden states of the slide encoder may stand in for tiles."""
        return self.frozen is not None and self.frozen.kept is not None

    @property
    def hides_modalities(self) -> bool:
        """Whether modalities of training cases are hidden."""
        return self.dropout.hides

    def frozen_digest(self) -> str | None:
        """Of the slide encoder; None without slides."""
        return None if self.frozen is None else self.frozen.digest()

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """An embedding per task."""
        shown = self._shown(batch)
        modal, hidden = self._modal_tokens(batch, shown)
        tasks = [
            self.task_norm(token + self.task_bias).expand(len(batch), 1, -1) for token in self.task_tokens
        ]
        state = None if self.frozen is None else self.frozen.start(batch)
        if self.params.mode != "full":
            return self._pass(batch, state, shown, tasks, modal, hidden)
        return [self._pass(batch, state, shown, [task], modal, hidden)[0] for task in tasks]

    def _pass(
        self,
        batch: CaseBatch,
        state: SlideTokens | None,
        shown: dict[str, Tensor],
        tasks: Sequence[Tensor],
        modal_BMW: Tensor,
        hidden_BM: Tensor | None,
    ) -> list[Tensor]:
        """One run of the encoder with these task tokens; an embedding for each of them."""
        count = len(tasks)
        c = torch.cat([*tasks, modal_BMW], dim=1)
        place = torch.cat([self.places[:1].expand(count, -1), self.places[1:]])
        hidden = None
        if hidden_BM is not None:
            hidden = torch.cat([hidden_BM.new_zeros(len(batch), count), hidden_BM], dim=1)
        seen = None if state is None else state.tiles.mask & shown[WSI][:, None]
        counts = None if self.frozen is None else self.frozen.counts(batch)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Interaction)
            if block.attention is not None:
                c = block.attention(c, place, hidden)
            if self.frozen is not None and state is not None:
                if block.injector is not None:
                    front, x = state.tokens.split([state.prefix, state.tokens.shape[1] - state.prefix], dim=1)
                    x = block.injector(x, c, place, hidden)
                    state = SlideTokens(torch.cat([front.to(x), x], dim=1), state.prefix, state.tiles)
                state = self.frozen.behind(i, state, batch)
            x = None if state is None else state.tokens[:, state.prefix :]
            for extractor in block.extractors:
                c = extractor(c, place, x, seen, counts)
        shared = [] if state is None else [self._slide(state, counts, shown)[:, None]]
        both = torch.cat([*shared, c], dim=1)
        if self.params.mode != "full":
            both = self.representation(both)
        front = len(shared)
        common = both[:, :front].sum(1) + _mean(both[:, front + count :], hidden_BM)
        return [self.output(self.output_norm(common + both[:, front + i])) for i in range(count)]

    def _slide(self, state: SlideTokens, counts: Tensor | None, shown: dict[str, Tensor]) -> Tensor:
        assert self.frozen is not None
        vector = self.frozen.slide_vector(state, counts)
        return torch.where(shown[WSI][:, None], vector, self.tokens[WSI].to(vector))

    def _modal_tokens(self, batch: CaseBatch, shown: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """``[B, M, W]`` tokens, learned ones for what a case lacks, and ``[B, M]`` which no other may look at."""
        parts, lacking = [batch.bags.new_zeros(len(batch), 0, self.places.shape[1])], []
        for name, encoder in self.encoders.items():
            here_B = shown[name]
            # Zeros in place of whatever stands there: NaN would come through a gradient of zero.
            rows = torch.where(here_B[:, None], table_of(batch, name, self.widths[name]), 0.0)
            made = encoder(rows)
            parts.append(torch.where(here_B[:, None, None], made, self.tokens[name].to(made)))
            lacking.append((~here_B)[:, None].expand(-1, made.shape[1]))
        if self.params.missing == "token" or not lacking:
            return torch.cat(parts, dim=1), None
        return torch.cat(parts, dim=1), torch.cat(lacking, dim=1)

    def _shown(self, batch: CaseBatch) -> dict[str, Tensor]:
        """Presence of the modalities, with some hidden at random in training."""
        present_BM = torch.stack(
            [batch.mask.any(dim=1) if name == WSI else batch.present[name] for name in self.tokens], dim=1
        )
        if self.training:
            present_BM = self.dropout(batch, present_BM)
        return {name: present_BM[:, m] for m, name in enumerate(self.tokens)}

    def task_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """The head and the token of the task."""
        return [*super().task_modules(index), self.task_tokens[index]]

    def modality_groups(self) -> Iterable[tuple[str, list[Tensor]]]:
        """Groups of a federation beside those of the tables: what talks to tiles is trained by patients with slides."""
        blocks: list[Any] = list(self.blocks)
        parts = [block.injector for block in blocks if block.injector is not None]
        parts += [e.attend for block in blocks for e in block.extractors if e.attend is not None]
        if parts:
            yield f"modality:{WSI}", [p for part in parts for p in part.parameters()]


def _mean(tokens_BMW: Tensor, hidden_BM: Tensor | None) -> Tensor:
    """``[B, W]`` mean of the tokens that are not hidden; 0 without any."""
    if hidden_BM is None:
        return tokens_BMW.sum(1) / max(tokens_BMW.shape[1], 1)
    kept = (~hidden_BM)[..., None]
    return torch.where(kept, tokens_BMW, 0.0).sum(1) / kept.sum(1).clamp(min=1)
