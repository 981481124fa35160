"""One case under one model: the output that is explained, for the case as it is and with other inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from equipoise.models.batch import CaseBatch
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.explain.outputs import ExplainedOutput
from equipoise.platform.training.batches import collate
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case

#: The modality of tiles, beside the names of tables.
WSI = "wsi"

#: Tiles, padding included, that go through a model at once.
TILES_AT_ONCE = 2**13


class TrainedModel(Protocol):
    """What is explained: :class:`~equipoise.platform.training.crossval.TrainedFold`, or a model that was exported."""

    @property
    def model(self) -> nn.Module:
        """Batch → task → outputs."""
        ...

    @property
    def targets(self) -> Targets:
        """As fitted on the training patients of the model."""
        ...


@dataclass(frozen=True)
class Explained:
    """A case, a model and one of its outputs.

    Attributes
    ----------
    model
        In evaluation mode while it is asked.
    batch
        The case alone, on the device of the model.
    output
        The number that is explained.
    """

    model: nn.Module
    batch: CaseBatch
    output: ExplainedOutput

    @classmethod
    def of(cls, trained: TrainedModel, case: Case, output: ExplainedOutput) -> Explained:
        """Collate the case as the model was trained to read it, tiles and not hidden states."""
        batch = collate([case], trained.targets)
        parameter = next(trained.model.parameters(), None)
        return cls(trained.model, batch if parameter is None else batch.to(parameter.device), output)

    @property
    def tiles(self) -> int:
        """Tiles of the case."""
        return int(self.batch.bags.shape[1])

    def forward(self, batch: CaseBatch) -> Tensor:
        """``[B]`` the output for each case of a batch, with a graph where gradients are enabled."""
        with evaluating(self.model):
            try:
                return self.output.of(self.model(batch))
            except ValueError as error:
                raise DataError(f"the model cannot read this case: {error}") from error

    def value(self, batch: CaseBatch | None = None) -> Tensor:
        """``[B]`` the output without a graph; of the case itself if no batch is given."""
        with torch.no_grad():
            return self.forward(self.batch if batch is None else batch)

    def gradients(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """``[B]`` the output with these inputs in place of the case's, and its gradient with respect to each.

        Parameters
        ----------
        inputs
            ``wsi`` → ``[B, N, D]`` bags, modality → ``[B, G]`` rows.

        Raises
        ------
        StudyError
            If no gradient comes back to one of them.
        """
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        with torch.enable_grad():
            out_B = self.forward(self.repeated(leaves))
            if not out_B.requires_grad:
                raise StudyError(_no_gradient(self.model, list(leaves)))
            found = torch.autograd.grad(out_B.sum(), list(leaves.values()), allow_unused=True)
        if cut := [name for name, gradient in zip(leaves, found, strict=True) if gradient is None]:
            raise StudyError(_no_gradient(self.model, cut))
        return out_B.detach(), dict(zip(leaves, found, strict=True))

    def repeated(self, inputs: Mapping[str, Tensor]) -> CaseBatch:
        """Copies of the case, one for each row of the inputs, which take the place of its own."""
        copies = self._copies(len(next(iter(inputs.values()))))
        omics = {**copies.omics, **{name: x for name, x in inputs.items() if name != WSI}}
        return dataclasses.replace(copies, bags=inputs.get(WSI, copies.bags), omics=omics)

    def without(self, modality: str) -> CaseBatch:
        """The case as if it lacked tiles (``wsi``) or a table."""
        if modality == WSI:
            nothing = torch.zeros(1, 0, dtype=torch.int64, device=self.batch.site.device)
            return self.with_tiles(nothing)
        batch = self.batch
        rows, flags = batch.omics[modality], batch.present[modality]
        return dataclasses.replace(
            batch,
            omics={**batch.omics, modality: torch.zeros_like(rows)},
            present={**batch.present, modality: torch.zeros_like(flags)},
        )

    def with_tiles(self, rows_SM: Tensor, mask_SM: Tensor | None = None) -> CaseBatch:
        """Copies of the case with these of its tiles.

        Parameters
        ----------
        rows_SM
            int64 ``[S, M]``: indices of the tiles of each copy.
        mask_SM
            bool ``[S, M]``: which of them count; all if not given.
        """
        mask_SM = torch.ones_like(rows_SM, dtype=torch.bool) if mask_SM is None else mask_SM
        own = self.batch
        return dataclasses.replace(
            self._copies(len(rows_SM)),
            bags=torch.where(mask_SM[..., None], own.bags[0][rows_SM], 0.0),
            mask=mask_SM,
            coords=torch.where(mask_SM[..., None], own.coords[0][rows_SM], 0),
            corners=None if own.corners is None else own.corners[0][rows_SM],
            padded=None,
            tileless=None,
        )

    def values_of_tiles(self, rows_SM: Tensor, mask_SM: Tensor | None = None) -> Tensor:
        """``[S]`` the output of such copies, a few of them at a time."""
        rows_SM = rows_SM.to(self.batch.site.device)
        at_once = max(TILES_AT_ONCE // max(rows_SM.shape[1], 1), 1)
        masks = (
            [None] * -(-len(rows_SM) // at_once)
            if mask_SM is None
            else mask_SM.to(rows_SM.device).split(at_once)
        )
        parts = zip(rows_SM.split(at_once), masks, strict=True)
        return torch.cat([self.value(self.with_tiles(rows, mask)) for rows, mask in parts])

    def _copies(self, count: int) -> CaseBatch:
        """The case several times, without a copy in memory."""
        expanded: dict[str, Any] = {}
        for part in dataclasses.fields(self.batch):
            value = getattr(self.batch, part.name)
            if isinstance(value, Tensor):
                expanded[part.name] = value.expand(count, *value.shape[1:])
            elif isinstance(value, Mapping):
                expanded[part.name] = {k: x.expand(count, *x.shape[1:]) for k, x in value.items()}
        return dataclasses.replace(self.batch, **expanded)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; the mode before is restored."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _no_gradient(model: nn.Module, inputs: list[str]) -> str:
    what = ", ".join("tiles" if name == WSI else name for name in inputs)
    return (
        f"no gradient comes back from the prediction of a {type(model).__name__} to {what}: "
        "use method occlusion or single_tile, which need none"
    )
