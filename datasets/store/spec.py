"""What made a store: the identity that decides whether features may be mixed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from equipoise.datasets.errors import DataError
from equipoise.datasets.names import require_name
from equipoise.datasets.remote.folders import Folder, LocalFolder

#: Written into every store and shard; readers are chosen by this pair.
ENCODING_TYPE = "equipoise-feature-store"
ENCODING_VERSION = "1.2.0"

SPEC_FILE = "store.json"

#: Folder of thumbnails and tile plans within a store.
QC_FOLDER = "qc"

#: Endings of the files there of each slide.
QC_SUFFIXES = (".jpg", ".geojson")


@dataclass(frozen=True)
class StoreSpec:
    """Everything that decides the numbers in a store.

    Attributes
    ----------
    encoder, encoder_hash
        Name, and digest of definition and weights.
    dim
        Length of a feature vector.
    mpp
        Target um/px of the tiles.
    tile_px
        Tile side in px.
    resample
        ``area`` or ``dct``.
    reader
        Rules by which pixels are read, with their version.
    tissue
        Parameters of mask and tile choice.
    code
        Version of the extraction's meaning (not of the program): raised when the same slide would give other
        tiles.
    """

    encoder: str
    encoder_hash: str
    dim: int
    mpp: float
    tile_px: int
    resample: str = "area"
    reader: str = "openslide-1"
    tissue: dict[str, Any] = field(default_factory=dict)
    code: str = "1"

    def __post_init__(self) -> None:
        """Raise :class:`ValueError` for what no store can be made with."""
        require_name(self.encoder, "encoder")
        if self.dim < 1 or self.tile_px < 1 or not 0 < self.mpp < float("inf"):
            raise ValueError(
                f"dim {self.dim}, mpp {self.mpp} and tile_px {self.tile_px} of a feature store must be positive"
            )

    @property
    def address(self) -> str:
        """Sixteen hexadecimal digits; equal specifications have equal addresses."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """Folder of the store below a folder of stores."""
        return f"{self.encoder}-{self.mpp:g}mpp-{self.tile_px}px-{self.address}"

    def differences(self, other: StoreSpec) -> list[str]:
        """``"mpp: 0.5 here, 1.0 asked for"`` for every field in which ``other``, what is asked for, differs."""
        differing = []
        for at in fields(self):
            ours, theirs = getattr(self, at.name), getattr(other, at.name)
            if isinstance(ours, dict):
                keys = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
                differing += [
                    f"{at.name}.{k}: {ours.get(k)!r} here, {theirs.get(k)!r} asked for" for k in keys
                ]
            elif ours != theirs:
                differing.append(f"{at.name}: {ours!r} here, {theirs!r} asked for")
        return differing


def write_spec(path: Path, spec: StoreSpec, shard_slides: int) -> str:
    """The text of ``store.json``; also returned for tests of the format."""
    text = json.dumps(
        {
            "encoding-type": ENCODING_TYPE,
            "encoding-version": ENCODING_VERSION,
            "address": spec.address,
            "shard_slides": shard_slides,
            "spec": asdict(spec),
        },
        indent=1,
        sort_keys=True,
    )
    path.write_text(text + "\n", "utf-8")
    return text


def read_spec(location: Path | Folder) -> tuple[StoreSpec, int]:
    """Specification and slides per shard of a store.

    Raises
    ------
    DataError
        If the folder is no store, of another major version, or damaged.
    """
    folder = LocalFolder(location) if isinstance(location, Path) else location
    file = f"{folder.address}/{SPEC_FILE}"
    try:
        text = folder.read(SPEC_FILE)
        content = None if text is None else json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"damaged feature store: {error}", where=file) from error
    if content is None:
        raise DataError(
            "no feature store here",
            where=folder.address,
            fix="name the folder of a store (features.store in a study), or run `equipoise extract`",
        )
    kind, version = content.get("encoding-type"), str(content.get("encoding-version", ""))
    if kind != ENCODING_TYPE:
        raise DataError(f"not a feature store: encoding-type is {kind!r}", where=file)
    if version.split(".")[0] != ENCODING_VERSION.split(".")[0]:
        raise DataError(
            f"feature store of format {version}, this program reads {ENCODING_VERSION}",
            where=file,
            fix="extract again, or use the release that wrote it",
        )
    try:
        return StoreSpec(**content["spec"]), int(content["shard_slides"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"damaged feature store: {error!r}", where=file) from error
