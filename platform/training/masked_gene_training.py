"""The training loop of the RNA encoder ``masked_gene``: genes are hidden, and their values predicted.

In every epoch each training cell shows a random part of its genes, some of them hidden. Two workers that share every
batch see together what one worker sees. The epoch of smallest loss on validation cells stays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.models.rna.masked_gene import MaskedGeneNetwork
from equipoise.platform.fingerprints import content_hash
from equipoise.platform.training import checkpoint as checkpoints
from equipoise.platform.training.build import pick_device, seeded
from equipoise.platform.training.checkpoint import TrainingProgress
from equipoise.platform.training.distributed import SINGLE_WORKER, WorkerGroup, shard
from equipoise.platform.training.masked_gene_reference import (
    TRAIN,
    VAL,
    PretrainingParams,
    Reference,
    drawn_genes,
)

log = logging.getLogger("equipoise.pretraining")

#: Cells per pass where nothing is learned.
_EVALUATED_AT_ONCE = 16


@dataclass(frozen=True)
class Losses:
    """Mean squared errors of hidden values of ln(1 + x), on the same cells and genes.

    Attributes
    ----------
    network
        Of the network.
    mean
        Of the gene's mean among training cells.
    """

    network: float
    mean: float

    @property
    def explained(self) -> float:
        """Share of the second that the network saves."""
        return 1 - self.network / self.mean


def squared_errors(
    network: MaskedGeneNetwork, reference: Reference, cells: np.ndarray, genes_BG: np.ndarray, shown: int
) -> tuple[Tensor, Tensor]:
    """Sums over all genes but the first ``shown`` of every cell: of the network, and of the gene's mean."""
    device = network.mean.device
    values = torch.from_numpy(np.take_along_axis(reference.rows(cells), genes_BG, axis=1)).to(device)
    genes = torch.from_numpy(genes_BG).to(device)
    embeddings = network(values[:, :shown], genes[:, :shown])
    hidden, target = genes[:, shown:], values[:, shown:]
    expected = network.predict(embeddings, hidden)
    return ((expected - target) ** 2).sum(), ((network.mean[hidden] - target) ** 2).sum()


def evaluate(
    network: MaskedGeneNetwork,
    reference: Reference,
    cells: np.ndarray,
    params: PretrainingParams,
    key: int,
    group: WorkerGroup = SINGLE_WORKER,
) -> Losses:
    """Losses on cells that show all genes but the hidden ones; which ones is a function of seed, key and cell."""
    width = len(reference.genes)
    shown = params.shown(width, training=False)
    own = np.array(shard(cells.tolist(), group), np.int64)
    sums = torch.zeros(2, dtype=torch.float64, device=network.mean.device)
    with torch.inference_mode():
        for start in range(0, len(own), _EVALUATED_AT_ONCE):
            part = own[start : start + _EVALUATED_AT_ONCE]
            genes_BG = drawn_genes(reference, part, (params.seed, key))
            sums += torch.stack(squared_errors(network, reference, part, genes_BG, shown)).double()
    return Losses(*(group.total(sums).cpu() / (len(cells) * (width - shown))).tolist())


def pretrain(
    network: MaskedGeneNetwork,
    reference: Reference,
    params: PretrainingParams,
    *,
    path: Path,
    group: WorkerGroup = SINGLE_WORKER,
    report: Callable[[dict[str, float]], None] | None = None,
) -> TrainingProgress:
    """Train until validation does not improve; the network gets the best weights at the end.

    Parameters
    ----------
    network
        Initialised from the seed, on its device.
    path
        Checkpoint, written after every epoch by the first worker; training continues from it.
    report
        Called after every epoch.

    Raises
    ------
    StudyError
        If the checkpoint is one of another training.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=params.lr, weight_decay=params.weight_decay)
    parts: dict[str, checkpoints.Stateful] = {"network": network, "optimizer": optimizer}
    identity = fingerprint_of(reference, params)
    progress = checkpoints.load(path, identity, parts) if path.exists() else TrainingProgress()
    while not _done(progress, params):
        epoch = len(progress.history) + 1
        loss = _epoch(network, optimizer, reference, params, epoch, group)
        losses = evaluate(network, reference, reference.val, params, VAL, group)
        row = {"epoch": float(epoch), "train/loss": loss, "val/loss": losses.network, "val/mean": losses.mean}
        progress.add(row | {"monitor": losses.network}, network)
        if group.rank == 0:
            checkpoints.save(path, identity, progress, parts)
        if report is not None:
            report(progress.history[-1])
    network.load_state_dict(progress.best_weights)
    return progress


def fingerprint_of(reference: Reference, params: PretrainingParams) -> dict[str, Any]:
    """What must be equal for a training to continue; the number of workers may change."""
    settings = params.model_dump(mode="json", exclude={"workers", "threads"})
    return {"reference": reference.digest, "genes": content_hash(reference.genes), "settings": settings}


def _done(progress: TrainingProgress, params: PretrainingParams) -> bool:
    done = len(progress.history)
    return done >= params.epochs or done - progress.best_epoch >= params.patience


def _epoch(
    network: MaskedGeneNetwork,
    optimizer: torch.optim.Optimizer,
    reference: Reference,
    params: PretrainingParams,
    epoch: int,
    group: WorkerGroup,
) -> float:
    """One pass over the training cells; the mean squared error of hidden values."""
    width = len(reference.genes)
    shown = params.shown(width, training=True)
    order = np.random.default_rng([params.seed, TRAIN, epoch]).permutation(reference.train)
    steps = math.ceil(len(order) / params.batch)
    total = torch.zeros((), dtype=torch.float64, device=network.mean.device)  # nccl sums nothing else
    for step in range(steps):
        share = (epoch - 1 + step / steps) / params.epochs
        for settings in optimizer.param_groups:
            settings["lr"] = params.lr * (1 + math.cos(math.pi * share)) / 2
        batch = order[step * params.batch : (step + 1) * params.batch]
        own = np.array(shard(batch.tolist(), group), np.int64)
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=network.mean.device)
        if len(own):
            genes_BG = drawn_genes(reference, own, (params.seed, TRAIN, epoch))
            errors, _ = squared_errors(network, reference, own, genes_BG, shown)
            # The mean over workers of these losses is the mean over the hidden values of the batch.
            loss = errors * group.world / (len(batch) * (width - shown))
            loss.backward()
        _reduce_gradients(network, group)
        optimizer.step()
        total += loss.detach().double() / group.world * len(batch)
    return float(group.total(total)) / len(order)


def _reduce_gradients(network: MaskedGeneNetwork, group: WorkerGroup) -> None:
    """Gradients become their means over workers."""
    if group.world == 1:
        return
    parameters = list(network.parameters())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = group.reduce(torch.cat([gradient.ravel() for gradient in gradients]))
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def new_network(reference: Reference, params: PretrainingParams) -> MaskedGeneNetwork:
    """The network before training: a function of the seed and the reference."""
    with seeded(params.seed, torch.device("cpu")):
        network = MaskedGeneNetwork(params.config, len(reference.genes))
    network.set_statistics(reference.statistics)
    return network


def pretrain_on_workers(reference: Reference, params: PretrainingParams, path: Path) -> None:
    """:func:`pretrain` by ``params.workers`` workers of Ray Train; the checkpoint holds what comes out.

    Raises
    ------
    ResourceError, EquipoiseError
        As :func:`~equipoise.platform.training.on_ray.run_workers`.
    """
    import ray

    from equipoise.platform.training.on_ray import run_workers

    gpus = ray.cluster_resources().get("GPU", 0) >= params.workers
    run_workers(
        _worker,
        PretrainingJob(reference, params, path.resolve()),
        workers=params.workers,
        threads=params.threads,
        gpus=gpus,
        scratch=path.parent.resolve() / "ray",
    )


@dataclass(frozen=True)
class PretrainingJob:
    """Inputs of every worker."""

    reference: Reference
    params: PretrainingParams
    path: Path


def _worker(config: dict[str, Any]) -> None:
    """One worker of Ray Train."""
    import ray
    from ray import train

    from equipoise.platform.training.distributed import ProcessGroup

    job: PretrainingJob = ray.get(config["job"])
    torch.set_num_threads(job.params.threads)
    network = new_network(job.reference, job.params).to(pick_device("auto"))

    def report(row: dict[str, float]) -> None:
        if train.get_context().get_world_rank() == 0:
            log_epoch(row)
        train.report(dict(row))

    pretrain(network, job.reference, job.params, path=job.path, group=ProcessGroup(), report=report)


def log_epoch(row: dict[str, float]) -> None:
    """A line of progress."""
    log.info(
        "epoch=%d loss=%.4f val_loss=%.4f val_loss_of_mean=%.4f",
        row["epoch"],
        row["train/loss"],
        row["val/loss"],
        row["val/mean"],
    )
