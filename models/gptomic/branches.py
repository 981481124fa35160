"""The branches of Path-GPTOmic: slides through a multiple-instance model, omics through two encoders and an MLP.

What stands in an absent modality is never read: a learned token takes its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch
from equipoise.models.tables.relu import ReluNetwork
from equipoise.models.tables.rows import table_of
from equipoise.models.tables.snn import SelfNormalising

#: Tables of the first part of the omics branch, in the order of their columns.
GENOME = ("cnv", "mutation")
RNA = "rna"


def token(width: int) -> nn.Parameter:
    """A vector learned in place of what is absent."""
    return nn.Parameter(0.02 * torch.randn(width))


class ImageBranch(nn.Module):
    """A multiple-instance model without its heads.

    Parameters
    ----------
    model
        Its vectors, one per task or one for all, are the branch's; its heads are removed.
    """

    modalities = ("wsi",)

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.width = int(model.heads[0].in_features)  # type: ignore[arg-type]
        heads = list(model.heads)
        #: What only one task uses (a token of the joint model, an attention per task), in the order of tasks.
        self.task_parts = [
            [part for part in model.task_modules(i) if part is not heads[i]] for i in range(len(heads))
        ]
        model.heads = nn.ModuleList()
        self.model = model
        self.token = token(self.width)

    def present(self, batch: CaseBatch) -> Tensor:
        """``[B]`` whether the case has tiles."""
        return batch.mask.any(dim=1)

    def forward(self, batch: CaseBatch, shown_B: Tensor) -> list[Tensor]:
        """``[B, width]`` per task, one tensor for all where the model makes no difference."""
        vectors = self.model.pool(_with_tiles(batch))
        if all(vector is vectors[0] for vector in vectors):
            return [torch.where(shown_B[:, None], vectors[0], self.token)] * len(vectors)
        return [torch.where(shown_B[:, None], vector, self.token) for vector in vectors]

    @property
    def has_attention(self) -> bool:
        """Whether the model of the branch has one."""
        return self.model.has_attention

    def attention(self, batch: CaseBatch) -> dict[str, Tensor]:
        """That of the model of the branch."""
        return self.model.attention(_with_tiles(batch))

    def groups(self) -> dict[str, list[Tensor]]:
        """Group of a federation → its parameters and buffers; see :meth:`Gptomic.modality_groups`."""
        state: list[Tensor] = [*self.model.parameters(), *self.model.buffers()]
        return {"modality:wsi": state, "absent:wsi": [self.token]}


class OmicsBranch(nn.Module):
    """CNV and mutations → SNN → G1; RNA as it comes → G2; MLP over [G1 ‖ G2].

    RNA may be principal components, an embedding of a pretrained encoder or genes: the first layer of the MLP reads it.

    Parameters
    ----------
    widths
        Table → columns, some of ``rna``, ``cnv`` and ``mutation``.
    dim, layers
        Width and number of layers of the MLP; the SNN has the same width and ``snn_layers``.
    dropout, input_dropout
        Behind every layer, and on what the MLP reads.

    Raises
    ------
    ValueError
        If there is no table.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        *,
        dim: int,
        layers: int,
        snn_layers: int,
        dropout: float,
        input_dropout: float,
    ) -> None:
        super().__init__()
        self.widths = {name: widths[name] for name in (*GENOME, RNA) if name in widths}
        self.modalities = tuple(self.widths)
        if not self.widths:
            raise ValueError("the omics branch reads rna, cnv or mutation, and the data have none")
        self.genome = tuple(name for name in GENOME if name in widths)
        self.width = dim
        parts = 0
        if self.genome:
            self.snn = SelfNormalising(
                sum(self.widths[name] for name in self.genome) + len(self.genome), dim, snn_layers, dropout
            )
            parts += dim
        both = bool(self.genome) and RNA in widths
        if RNA in widths:
            parts += widths[RNA]
        #: In place of a part that is absent beside the other one.
        self.part_tokens = nn.ParameterDict(
            {"genome": token(dim), RNA: nn.Parameter(torch.zeros(widths[RNA]))} if both else {}
        )
        self.input_dropout = nn.Dropout(input_dropout)
        self.mlp = ReluNetwork(parts, dim, layers, dropout)
        self.token = token(dim)

    def present(self, batch: CaseBatch) -> Tensor:
        """``[B]`` whether the case has any of the tables."""
        return torch.stack([batch.present[name] for name in self.modalities]).any(dim=0)

    def forward(self, batch: CaseBatch, shown_B: Tensor) -> Tensor:
        """``[B, width]``."""
        parts = []
        if self.genome:
            here_MB = torch.stack([batch.present[name] for name in self.genome])
            flags = (~here_MB).T.to(batch.bags)
            rows = [masked_table(batch, name, self.widths[name]) for name in self.genome]
            parts.append(
                self._or_token("genome", self.snn(torch.cat([*rows, flags], dim=1)), here_MB.any(dim=0))
            )
        if RNA in self.widths:
            parts.append(self._or_token(RNA, masked_table(batch, RNA, self.widths[RNA]), batch.present[RNA]))
        vector = self.mlp(self.input_dropout(torch.cat(parts, dim=1)))
        return torch.where(shown_B[:, None], vector, self.token)

    def _or_token(self, part: str, rows: Tensor, here_B: Tensor) -> Tensor:
        if part not in self.part_tokens:
            return rows
        return torch.where(here_B[:, None], rows, self.part_tokens[part])

    def groups(self) -> dict[str, list[Tensor]]:
        """As of :class:`ImageBranch`; a group of several tables is trained by patients with any of them."""
        whole = "+".join(self.modalities)
        groups: dict[str, list[Tensor]] = {
            f"modality:{whole}": list(self.mlp.parameters()),
            f"absent:{whole}": [self.token],
        }
        if self.genome:
            groups.setdefault(f"modality:{'+'.join(self.genome)}", []).extend(self.snn.parameters())
        if self.part_tokens:
            groups[f"absent:{'+'.join(self.genome)}"] = [self.part_tokens["genome"]]
            groups[f"absent:{RNA}"] = [self.part_tokens[RNA]]
        return groups


class ClinicalColumns(nn.Module):
    """Covariates, straight to the heads; a learned row where a patient has none."""

    modalities = ("clinical",)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.token = nn.Parameter(torch.zeros(width))

    def present(self, batch: CaseBatch) -> Tensor:
        """``[B]`` whether the case has covariates."""
        return batch.present["clinical"]

    def forward(self, batch: CaseBatch) -> Tensor:
        """``[B, width]``."""
        return torch.where(
            batch.present["clinical"][:, None], table_of(batch, "clinical", self.width), self.token
        )

    def groups(self) -> dict[str, list[Tensor]]:
        """As of :class:`ImageBranch`."""
        return {"absent:clinical": [self.token]}


def masked_table(batch: CaseBatch, modality: str, width: int) -> Tensor:
    """``[B, width]`` values of a table, 0 where it is absent whatever stands there."""
    return torch.where(batch.present[modality][:, None], table_of(batch, modality, width), 0.0)


def _with_tiles(batch: CaseBatch) -> CaseBatch:
    """The batch with one tile of zeros in every case without tiles: a model of bags has to pool something."""
    if not batch.tileless:
        return batch
    bags, mask, coords = batch.bags, batch.mask, batch.coords
    if bags.shape[1] == 0:
        bags = bags.new_zeros(len(batch), 1, bags.shape[2])
        mask, coords = mask.new_zeros(len(batch), 1), coords.new_zeros(len(batch), 1, 2)
    empty_B1 = ~mask.any(dim=1, keepdim=True)
    first = torch.zeros_like(mask)
    first[:, 0] = True
    return dataclasses.replace(
        batch,
        bags=torch.where(empty_B1[:, :, None], 0.0, bags),
        mask=mask | (empty_B1 & first),
        coords=coords,
        padded=None,
        tileless=None,
    )


def parameters_of(parts: Sequence[nn.Module | nn.Parameter]) -> list[nn.Parameter]:
    """All parameters of modules and parameters."""
    return [p for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())]
