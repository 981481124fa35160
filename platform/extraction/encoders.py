"""The encoder of a study: identified by the driver, built by a worker, checked to be the same in both."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from equipoise.datasets.slides.tissue import TissueParams
from equipoise.datasets.store.spec import StoreSpec
from equipoise.models.encoders.protocol import Encoder, Identity
from equipoise.platform.errors import ResourceError
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.registry import get

MakeEncoder = Callable[[ExtractionParams], Encoder]
Identify = Callable[[ExtractionParams], Identity]

#: Rules by which pixels are read: raised when the same slide would give other tiles or other pixels.
#: Since ``tiles-2``: truncated JPEG tiles are refused instead of filled with grey.
READER = "tiles-2"


def load_encoder(params: ExtractionParams) -> Encoder:
    """The encoder that a study names.

    Raises
    ------
    ResourceError
        If its weights are missing or belong to another encoder; says how to get them.
    """
    entry = get("encoders", params.encoder)
    with _as_resource_error(params):
        return entry.load()(entry.params.model_validate(params.encoder_params))


def identify_encoder(params: ExtractionParams) -> Identity:
    """Identity of a study's encoder; the encoder is built only if its class has no ``identify``.

    Raises
    ------
    ResourceError
        As :func:`load_encoder`.
    """
    entry = get("encoders", params.encoder)
    with _as_resource_error(params):
        encoder_class, settings = entry.load(), entry.params.model_validate(params.encoder_params)
        if hasattr(encoder_class, "identify"):
            return encoder_class.identify(settings)
        encoder = encoder_class(settings)
        return Identity(encoder.dim, encoder.hash, encoder.batch_size)


@contextmanager
def _as_resource_error(params: ExtractionParams) -> Iterator[None]:
    """Raise problems with weights as :class:`ResourceError`, with how to solve them."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        what, _, fix = str(error).partition("\n")
        raise ResourceError(what, where=f"encoder {params.encoder}", fix=fix or None) from error


def store_spec(params: ExtractionParams, encoder: Encoder | Identity) -> StoreSpec:
    """The specification that the features of a study are made with."""
    tissue = {**asdict(TissueParams()), "min_tissue": params.min_tissue, "min_tiles": params.min_tiles}
    return StoreSpec(
        encoder=params.encoder,
        encoder_hash=encoder.hash,
        dim=encoder.dim,
        mpp=params.mpp,
        tile_px=params.tile_px,
        resample=params.resample,
        reader=READER,
        tissue={**tissue, "max_bad_tiles": params.max_bad_tiles},
    )


def require_same_encoder(encoder: Encoder, spec: StoreSpec) -> None:
    """Refuse to fill a store with the vectors of another encoder than it was made for.

    Raises
    ------
    ResourceError
        Naming the machine: its weights or its release differ from the driver's.
    """
    if (encoder.hash, encoder.dim) != (spec.encoder_hash, spec.dim):
        raise ResourceError(
            f"this machine has another encoder {spec.encoder!r} than the driver: {encoder.hash[:12]} with "
            f"{encoder.dim} dimensions, the feature store is for {spec.encoder_hash[:12]} with {spec.dim}",
            where=f"worker on {socket.gethostname()}",
            fix="put the same weights file and the same release of Equipoise on all machines",
        )
