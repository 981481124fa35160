"""Stage 1 of Path-GPTOmic: from single cells and a frozen encoder to the folder that ``tables.rna.adapter`` names.

A fifth of the cells of every type is held out. Cells are mixed into samples on the linear scale, the samples are
encoded once (on Ray Data, unless the encoder is so quick that workers do not pay), and the adapter is trained on their
vectors. What it learned is measured on pseudo-bulk samples of the held-out cells.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pydantic import ValidationError

from equipoise.datasets.atomic_io import atomic_path
from equipoise.datasets.omics.params import RnaEncoderSource
from equipoise.datasets.omics.single_cell import SingleCells, hold_out, pseudo_bulk
from equipoise.models.gptomic.mixup import Recovery, mix, mixed_labels, mixture_weights, recovery
from equipoise.models.gptomic.params import AdapterParams
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.cluster.session import ray_session
from equipoise.platform.errors import DataWarning, StudyError
from equipoise.platform.extraction.rna_encoders import identify_rna_encoder
from equipoise.platform.extraction.rna_vectors import Profiles, encode_profiles
from equipoise.platform.fingerprints import fingerprint, require_same
from equipoise.platform.registry import get
from equipoise.platform.study.reading import parse_overrides

if TYPE_CHECKING:
    from equipoise.models.gptomic.smoothing import Adapter

log = logging.getLogger("equipoise.adaptation")

HELD_OUT = 0.2
#: Pseudo-bulk samples, and cells in each, on which an adapter is measured.
SAMPLES, CELLS = 1000, 100
#: Samples are mixed and handed to workers in blocks of this size: every block loads the encoder again.
_BLOCK_BYTES = 512 << 20
#: A type whose predicted fraction follows the true one less than this has been lost.
_LOST = 0.1


@dataclass(frozen=True)
class Adaptation:
    """An adapter in its folder.

    Attributes
    ----------
    out
        The folder.
    encoder
        Name of the encoder.
    adapter
        What is in the folder.
    new
        Whether it was trained now; False where the folder held the same one already.
    synthetic
        Whether the reference is.
    """

    out: Path
    encoder: str
    adapter: Adapter
    new: bool
    synthetic: bool

    def fields(self) -> dict[str, Any]:
        """Fields of the result line."""
        record = self.adapter.record
        fields = {"out": self.out.resolve(), "new": self.new, "r": record["r"], "type_r": record["type_r"]}
        return fields | ({"synthetic": True} if self.synthetic else {})

    def text(self) -> str:
        """For a person: how well compositions are recovered, and what to write into a study."""
        record = self.adapter.record
        of_types = "\n".join(
            f"  {name}: {'not measured' if r is None else f'{r:.3f}'}"
            for name, r in record["r_of_type"].items()
        )
        label = " (SYNTHETIC)" if self.synthetic else ""
        return (
            f"pseudo-bulk of {CELLS} held-out cells{label}: r = {record['r']:.3f} of true and predicted fractions\n"
            f"{of_types}\n"
            f"next: tables: {{rna: {{encoder: {{name: {self.encoder}, …}}, adapter: {self.out}}}}}"
        )


def encoder_source(text: str) -> RnaEncoderSource:
    """An encoder as a study names it, from the command line.

    Raises
    ------
    StudyError
        If it is not of that form.
    """
    try:
        return RnaEncoderSource.model_validate(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        raise StudyError(
            f"--encoder {text!r} names no encoder", fix="for example --encoder '{name: scgpt, folder: DIR}'"
        ) from error


def adapter_params(pairs: Sequence[str]) -> AdapterParams:
    """Parameters of mixing and training from ``KEY=VALUE`` pairs.

    Raises
    ------
    StudyError
        Naming the first parameter that is wrong.
    """
    try:
        return AdapterParams.model_validate(parse_overrides(list(pairs)))
    except ValidationError as error:
        first = error.errors()[0]
        raise StudyError(
            f"--set {'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix=f"the parameters are {', '.join(AdapterParams.model_fields)}",
        ) from error


def adapt(
    cells: SingleCells,
    source: RnaEncoderSource,
    out: Path,
    params: AdapterParams,
    *,
    seed: int,
    options: RayOptions,
    base: Path | None = None,
) -> Adaptation:
    """Train an adapter and write it to ``out``.

    Parameters
    ----------
    cells
        Labelled reference.
    source, base
        The encoder, and the folder that its paths start from (default: the current one).
    out
        New folder; if it holds the adapter of the same cells, encoder, parameters and seed, that one is returned.
    params
        How cells are mixed, the network and its training.
    seed
        Of the split, the mixtures and the training.
    options
        What Ray may use; it is opened only for encoders that workers pay for.

    Raises
    ------
    DataError, ResourceError
        As :func:`~equipoise.platform.extraction.rna_vectors.encode_profiles`; DataError also if no type has two cells.
    StudyError
        If ``out`` holds something else.

    Warns
    -----
    DataWarning
        If the adapter hardly moved from its start, or the fraction of a type is not recovered.
    """
    from equipoise.models.gptomic.smoothing import CONFIG, load_adapter, train_adapter

    base = Path.cwd() if base is None else base
    identity = identify_rna_encoder(source, base)
    made_from = fingerprint(
        {
            "cells": cells.digest,
            "encoder": source.name,
            "encoder_fingerprint": identity.fingerprint,
            "encoder_seed": source.seed,
            "params": params.model_dump(),
            "seed": seed,
        }
    )
    if out.exists():
        if not (out / CONFIG).is_file():
            raise StudyError(
                "this folder exists and holds no adapter", where=str(out), fix="name a new folder"
            )
        adapter = load_adapter(out)
        fix = "name a new folder, or remove this one"
        require_same(
            adapter.record["made_from"], made_from, "the folder holds another adapter", where=out, fix=fix
        )
        return Adaptation(out, source.name, adapter, False, cells.synthetic)
    for note in cells.notes:
        log.info("reference %s", note)
    cells = cells.with_equal_totals()
    train, held_out = hold_out(cells, HELD_OUT, seed)
    weights = mixture_weights(train.labels, params, seed)
    bulk, composition = pseudo_bulk(held_out, SAMPLES, seed=seed, size=CELLS)
    inline = get("rna_encoders", source.name).attribute("in_process")
    with nullcontext() if inline else ray_session(options):
        encoded = []
        block = max(1, _BLOCK_BYTES // (4 * len(cells.genes)))
        for start in range(0, params.samples, block):
            values = mix(train.values, weights[start : start + block], params.space)
            if start + block >= params.samples:
                values = np.concatenate([values, bulk])
            encoded.append(encode_profiles(Profiles(values, cells.genes, "tpm"), source, base))
    vectors, bulk_vectors = np.split(np.concatenate(encoded), [params.samples])
    trained = train_adapter(
        vectors,
        mixed_labels(train.labels, weights, len(cells.types)),
        cells.types,
        params,
        encoder=source.name,
        encoder_fingerprint=identity.fingerprint,
        seed=seed,
    )
    record: dict[str, Any] = {"made_from": made_from, "synthetic": cells.synthetic}
    record |= _measured(trained, bulk_vectors, composition)
    record["not_held_out"] = [name for k, name in enumerate(cells.types) if not (held_out.labels == k).any()]
    adapter = replace(trained, record=record)
    warn_of_nothing_learned(adapter)
    with atomic_path(out) as temporary:
        adapter.save(temporary)
    return Adaptation(out, source.name, adapter, True, cells.synthetic)


def _measured(adapter: Adapter, vectors: np.ndarray, fractions: np.ndarray) -> dict[str, Any]:
    """How well the fractions of pseudo-bulk samples are predicted; NaN becomes None, as JSON has no NaN."""
    predicted = adapter.fractions(vectors)
    known = np.isfinite(predicted).all(axis=1)
    result: Recovery = recovery(predicted[known], fractions[known])
    of_type = dict(zip(adapter.types, map(_number, result.r_of_type), strict=True))
    return {
        "r": _number(result.r),
        "type_r": _number(result.type_r),
        "total_variation": _number(result.total_variation),
        "r_of_type": of_type,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def warn_of_nothing_learned(adapter: Adapter) -> None:
    """Say aloud that an adapter did not move from its start, or that it lost a cell type.

    Warns
    -----
    DataWarning
        One for each of both.
    """
    from equipoise.models.gptomic.smoothing import LEAST_MOVE

    if adapter.moved < LEAST_MOVE:
        warnings.warn(
            f"the adapter's weights moved by {adapter.moved:.2%} of their norm: it is hardly more than its random "
            "start; raise epochs or lr",
            DataWarning,
            stacklevel=2,
        )
    record = adapter.record
    lost = [
        name
        for name, r in record["r_of_type"].items()
        if name not in record["not_held_out"] and (r is None or r < _LOST)
    ]
    if lost:
        warnings.warn(
            f"{len(lost)} of {len(adapter.types)} cell types are not recovered from held-out pseudo-bulk samples "
            f"(r below {_LOST}): {', '.join(lost)}; the reference has few of them, or the encoder does not see them",
            DataWarning,
            stacklevel=2,
        )
