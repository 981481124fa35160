"""Batches of a training. Cases with one tile or none are read, transformed and stacked once, not in every epoch.

A table has the same row in every epoch, and so has the one vector of a slide encoder: a full-batch training of a small
network costs little more than its arithmetic. Bags of tiles stay in the store: they are large, and other tiles are
drawn in every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from equipoise.models.batch import CaseBatch
from equipoise.platform.training.batches import CaseList, collate, draw_tiles
from equipoise.platform.training.distributed import WorkerGroup
from equipoise.platform.training.predict import CaseInfo, Outputs, run_distributed
from equipoise.platform.training.targets import Targets

#: Most numbers of tables that a training keeps as tensors (512 MiB).
MAX_HELD = 2**27


@dataclass(frozen=True)
class HeldCases:
    """All cases of a list as one batch."""

    infos: tuple[CaseInfo, ...]
    batch: CaseBatch


class BatchReader:
    """Reads batches of training and validation cases, and the outputs of a model for them.

    Parameters
    ----------
    targets
        Tasks, scalers, widths.
    lists
        Cases that are kept as tensors if none has more than one tile and they fit; batches of others are read again.
    states
        Whether the model reads hidden states in place of tiles.
    """

    def __init__(self, targets: Targets, *lists: CaseList, states: bool = False) -> None:
        self.targets, self.states = targets, states
        width = sum(targets.shape.omics.values()) + targets.shape.features
        fits = width * sum(map(len, lists)) <= MAX_HELD
        if targets.shape.features:  # the first bag of tiles ends the search
            fits = fits and all(len(case.bag) <= 1 for cases in lists for case in cases)
        self._held = {id(cases): self._hold(cases) for cases in lists if len(cases)} if fits else {}

    def _hold(self, cases: CaseList) -> HeldCases:
        read = list(cases)
        infos = tuple(CaseInfo(case.patient, case.cohort, case.site, case.targets) for case in read)
        return HeldCases(infos, collate(read, self.targets, states=self.states))

    def read(
        self, cases: CaseList, rows: Sequence[int], most: int | None, seed: int, epoch: int
    ) -> CaseBatch:
        """The cases at these positions, with at most ``most`` tiles each.

        Tiles are drawn as :func:`~equipoise.platform.training.batches.draw_tiles` does for seed and epoch.
        """
        if (held := self._held.get(id(cases))) is not None:
            return held.batch.select(torch.as_tensor(rows))
        chosen = [cases[i] for i in rows]
        tiles = [draw_tiles(len(case.bag), most, seed, epoch, case.patient) for case in chosen]
        return collate(chosen, self.targets, tiles, states=self.states)

    def outputs(self, model: nn.Module, cases: CaseList, group: WorkerGroup) -> Outputs:
        """Outputs for all cases of a list, to choose an epoch by.

        In one pass where the batch is at hand; that differs in the last digits from predicting one case at a time, as
        :func:`~equipoise.platform.training.predict.run_model` does for every prediction that is written.
        """
        held = self._held.get(id(cases))
        if held is None or group.world > 1:
            return run_distributed(model, self.targets, cases, group)
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                raw = model(held.batch.to(next(model.parameters()).device))
        finally:
            model.train(training)
        batch = held.batch
        assert batch.cohort is not None
        outputs = {name: out.float().cpu() for name, out in raw.items()}
        return Outputs(held.infos, outputs, dict(batch.targets), dict(batch.label_mask), batch.cohort)
