"""From single cells to the folder of an RNA encoder that ``tables.rna.encoder`` names.

The masked-gene encoder of :mod:`equipoise.models.rna.masked_gene` is trained on a reference of the user's own; its loss
on test cells, which decided nothing, stands beside that of predicting every gene's mean.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from equipoise.datasets.atomic_io import read_json
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.cluster.session import ray_session
from equipoise.platform.errors import DataWarning, StudyError
from equipoise.platform.fingerprints import fingerprint, require_same
from equipoise.platform.study.reading import parse_overrides

if TYPE_CHECKING:
    from equipoise.datasets.omics.single_cell import SingleCells
    from equipoise.platform.training.masked_gene_reference import PretrainingParams

log = logging.getLogger("equipoise.pretraining")

#: Share of the loss of predicting the mean that an encoder should save: below it nothing was learned.
LEAST_EXPLAINED = 0.01


@dataclass(frozen=True)
class Pretraining:
    """An encoder in its folder.

    Attributes
    ----------
    out
        The folder.
    fingerprint
        Of the encoder.
    record
        Cells, epochs and losses, as ``config.json`` has them under ``pretraining``.
    new
        Whether it was trained now; False where the folder held the same one already.
    """

    out: Path
    fingerprint: str
    record: dict[str, Any]
    new: bool

    def fields(self) -> dict[str, Any]:
        """Fields of the result line."""
        names = ("test_loss", "test_loss_of_mean", "explained")
        fields = {"out": self.out.resolve(), "new": self.new, "fingerprint": self.fingerprint}
        fields |= {name: self.record[name] for name in names}
        return fields | ({"synthetic": True} if self.record["synthetic"] else {})

    def text(self) -> str:
        """For a person: how well hidden genes are predicted, and what to write into a study."""
        record = self.record
        label = " (SYNTHETIC)" if record["synthetic"] else ""
        return (
            f"hidden genes of {record['cells']['test']} test cells{label}: mean squared error "
            f"{record['test_loss']:.4f}, {record['test_loss_of_mean']:.4f} by the gene's mean: "
            f"{record['explained']:.1%} explained, epoch {record['best_epoch']} of {record['epochs']}\n"
            f"next: tables: {{rna: {{encoder: {{name: masked_gene, folder: {self.out}}}}}}}"
        )


def pretraining_params(pairs: Sequence[str], **given: Any) -> PretrainingParams:
    """Settings from ``KEY=VALUE`` pairs and from options.

    Raises
    ------
    StudyError
        Naming the first setting that is wrong.
    """
    from equipoise.platform.training.masked_gene_reference import PretrainingParams

    try:
        return PretrainingParams.model_validate(given | parse_overrides(list(pairs)))
    except ValidationError as error:
        first = error.errors()[0]
        raise StudyError(
            f"--set {'.'.join(map(str, first['loc'])) or '…'}: {first['msg']}",
            fix=f"the parameters are {', '.join(PretrainingParams.model_fields)}",
        ) from error


def pretrain_encoder(
    cells: SingleCells, params: PretrainingParams, out: Path, options: RayOptions | None = None
) -> Pretraining:
    """Train the encoder on a reference and write its folder; an interrupted call continues where it stopped.

    Parameters
    ----------
    cells
        The reference, on a linear scale.
    params
        Settings.
    out
        New folder; if it holds the encoder of the same cells and settings, that one is returned.
    options
        What Ray may use, for several workers; ``None``: a Ray session is open.

    Raises
    ------
    StudyError
        If the folder holds something else.
    DataError
        If the reference is too small.

    Warns
    -----
    DataWarning
        If hidden genes are predicted hardly better than by their means.
    """
    from contextlib import nullcontext

    from equipoise.models.rna.folders import CONFIG
    from equipoise.models.rna.masked_gene import read_masked_gene, save_masked_gene
    from equipoise.platform.training.build import pick_device
    from equipoise.platform.training.masked_gene_reference import TEST, prepare_reference
    from equipoise.platform.training.masked_gene_training import (
        evaluate,
        fingerprint_of,
        log_epoch,
        new_network,
        pretrain,
        pretrain_on_workers,
    )

    reference = prepare_reference(cells, params)
    made_from = fingerprint(fingerprint_of(reference, params))
    if out.exists():
        if not (out / CONFIG).is_file():
            raise StudyError(
                "this folder exists and holds no encoder", where=str(out), fix="name a new folder"
            )
        _, identity = read_masked_gene(out)
        record = read_json(out / CONFIG)["pretraining"]
        fix = "name a new folder, or remove this one"
        require_same(record["made_from"], made_from, "the folder holds another encoder", where=out, fix=fix)
        return Pretraining(out, identity.fingerprint, record, False)
    for note in cells.notes:
        log.info("reference %s", note)
    partial = out.parent / f".{out.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    path = partial / "checkpoint.pt"
    if params.workers > 1:
        with nullcontext() if options is None else ray_session(options):
            pretrain_on_workers(reference, params, path)
    network = new_network(reference, params).to(pick_device("auto"))
    progress = pretrain(network, reference, params, path=path, report=log_epoch)
    losses = evaluate(network, reference, reference.test, params, TEST)
    record = {
        "made_from": made_from,
        "synthetic": cells.synthetic,
        "cells": {name: len(getattr(reference, name)) for name in ("train", "val", "test")},
        "epochs": len(progress.history),
        "best_epoch": progress.best_epoch,
        "test_loss": losses.network,
        "test_loss_of_mean": losses.mean,
        "explained": losses.explained,
    }
    digest = save_masked_gene(network.cpu(), params.config, reference.genes, out, record)
    path.unlink()
    partial.rmdir()
    if record["explained"] < LEAST_EXPLAINED:
        warnings.warn(
            f"hidden genes are predicted hardly better than by their means ({record['explained']:.1%} explained): the "
            "encoder has learned next to nothing; train longer, or on more cells",
            DataWarning,
            stacklevel=2,
        )
    return Pretraining(out, digest, record, True)
