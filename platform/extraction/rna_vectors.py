"""RNA through an encoder: computed once for every profile, and kept like features.

A vector is a function of the encoder, the seed and the profile. So it is found by them: the store's folder carries the
encoder's fingerprint and the seed, a vector's key is the hash of genes, kind and values. A cohort that grows, another
study with the same patients or a run that was interrupted compute what is missing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.params import RnaEncoderSource
from equipoise.datasets.remote.folders import folder_at
from equipoise.datasets.store.vector_store import VectorStore
from equipoise.models.rna.protocol import Identity, check_profiles
from equipoise.platform.errors import ResourceError
from equipoise.platform.extraction.chunks import Row
from equipoise.platform.extraction.ray_backend import run_on_ray
from equipoise.platform.extraction.rna_encoders import KEY, identify_rna_encoder, load_rna_encoder
from equipoise.platform.extraction.stages import gpus_of
from equipoise.platform.progress import ProgressBar
from equipoise.platform.registry import get

#: Samples that a worker gets at a time, and of a block in the store.
BLOCK = 32
#: Folder of vector stores below that of feature stores.
_FOLDER = "rna"


@dataclass(frozen=True)
class Profiles:
    """Samples of one kind.

    Attributes
    ----------
    values
        ``[N, G]`` float32; NaN: not measured.
    genes
        ``[G]`` names.
    kind
        ``counts``, ``tpm``, ``log`` (natural) or ``zscore``.
    """

    values: NDArray[np.float32]
    genes: tuple[str, ...]
    kind: str

    def keys(self) -> list[str]:
        """Of every sample: the hash of what its vector is a function of."""
        header = hashlib.sha256("\n".join((self.kind, *self.genes)).encode()).digest()
        rows = np.ascontiguousarray(self.values, "<f4")
        return [hashlib.sha256(header + row.tobytes()).hexdigest()[:32] for row in rows]


def encode_profiles(
    profiles: Profiles,
    source: RnaEncoderSource,
    base: Path,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    session: Callable[[], AbstractContextManager[object]] = nullcontext,
    store: VectorStore | None = None,
    identity: Identity | None = None,
) -> NDArray[np.float32]:
    """Vectors of samples: read from the store, the others computed on Ray Data and added to it.

    Parameters
    ----------
    profiles
        The samples.
    source, base
        The encoder in the study, and the folder that its paths start from.
    workers
        Maximum number of encoder actors; 0: everything in this process. So it is for an encoder that says that workers
        do not pay (``in_process``).
    gpus_per_worker
        Share of a GPU for each encoder actor, of an encoder that needs one; default: what it is meant for.
    session
        Opens Ray, only if there is something to compute.
    store
        Where vectors are kept; ``None``: nowhere.
    identity
        Of the encoder, where it is known already.

    Returns
    -------
    ``[N, D]``; a row of NaN where a sample has nothing that the encoder reads.

    Raises
    ------
    DataError
        If the encoder refuses the samples.
    ResourceError
        If the encoder cannot be built, here or on a worker.
    """
    entry = get("rna_encoders", source.name)
    try:
        check_profiles(
            source.name, entry.attribute("accepts"), profiles.values, profiles.genes, profiles.kind
        )
    except ValueError as error:
        raise _data_error(str(error)) from error
    identity = identify_rna_encoder(source, base) if identity is None else identity
    known = {} if store is None else store.read()
    keys = profiles.keys()
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # equal profiles are encoded once
    missing = [i for key, i in first.items() if key not in known][::-1]
    if missing:
        rows = _rows(profiles, keys, missing)
        stages = RnaStages(source, base, identity, gpus_per_worker)
        inline = workers == 0 or entry.attribute("in_process")
        progress = ProgressBar(f"rna encoder={source.name}", len(missing), unit="samples")
        with nullcontext() if inline else session(), progress as bar:
            results = _inline(rows, stages) if inline else run_on_ray(rows, stages, workers)
            for row in results:
                if row["error"]:
                    raise _data_error(row["error"])
                block_keys, vectors = row["keys"].split("\n"), np.asarray(row["vectors"], np.float32)
                if store is not None:
                    store.write(block_keys, vectors)
                known |= dict(zip(block_keys, vectors, strict=True))
                bar.update(bar.done + len(block_keys))
    empty = np.empty((0, identity.dim), np.float32)
    return np.stack([known[key] for key in keys]) if keys else empty


def _rows(profiles: Profiles, keys: Sequence[str], chosen: Sequence[int]) -> list[Row]:
    """A row for every block."""
    blocks = [list(chosen[i : i + BLOCK]) for i in range(0, len(chosen), BLOCK)]
    return [
        {
            "keys": "\n".join(keys[i] for i in block),
            "values": profiles.values[block],
            "genes": "\n".join(profiles.genes),
            "kind": profiles.kind,
        }
        for block in blocks
    ]


def _inline(rows: list[Row], stages: RnaStages) -> Iterator[Row]:
    encode = stages.encoder()
    return (encode(row) for row in rows)


def _data_error(text: str) -> DataError:
    what, _, fix = text.partition("\n")
    return DataError(what, where=KEY, fix=fix or None)


@dataclass(frozen=True)
class RnaStages:
    """Builds the stage of RNA encoders; nothing is planned.

    Attributes
    ----------
    source, base
        The encoder in the study, and the folder that its paths start from.
    identity
        Of the driver's encoder; a worker with another one refuses to work.
    gpus_per_worker
        Share of a GPU for each worker, of an encoder that needs one; ``None``: what it is meant for.
    """

    source: RnaEncoderSource
    base: Path
    identity: Identity
    gpus_per_worker: float | None = None

    @property
    def label(self) -> str:
        """Name of the encoder."""
        return self.source.name

    @property
    def gpus(self) -> float:
        """Share of a GPU that a worker needs; none where the study says ``device: cpu``."""
        meant = float(get("rna_encoders", self.label).attribute("gpus"))
        return gpus_of(meant, self.source.params, self.gpus_per_worker)

    def planner(self) -> Callable[[Row], list[Row]]:
        """The identity: rows are passed on."""
        return lambda row: [row]

    def encoder(self) -> Callable[[Row], Row]:
        """The stage, with its encoder built."""
        encoder = load_rna_encoder(self.source, self.base)
        if (encoder.dim, encoder.fingerprint) != (self.identity.dim, self.identity.fingerprint):
            raise ResourceError(
                f"this machine has another RNA encoder {self.label!r} than the driver",
                fix="put the same files and the same release of Equipoise on all machines",
            )

        def encode(row: Row) -> Row:
            started = time.perf_counter()
            keys, genes = row["keys"].split("\n"), row["genes"].split("\n")
            vectors, error = np.full((len(keys), encoder.dim), np.nan, np.float32), ""
            try:
                values = np.array(row["values"], np.float32)  # a copy: what Ray hands over cannot be written
                vectors = encoder.encode(values, genes, kind=row["kind"], seed=self.source.seed)
            except ValueError as refusal:
                error = str(refusal)
            seconds = time.perf_counter() - started
            counted = {"encoded": len(keys), "reading": 0.0, "encoding": seconds}
            return {"keys": row["keys"], "vectors": vectors, "error": error, **counted}

        return encode


def rna_store(source: RnaEncoderSource, identity: Identity, store_root: str | Path) -> VectorStore:
    """The store of an encoder's vectors."""
    spec = {
        "encoder": source.name,
        "fingerprint": identity.fingerprint,
        "seed": source.seed,
        "dim": identity.dim,
    }
    address = hashlib.sha256(f"{identity.fingerprint} {source.seed}".encode()).hexdigest()[:12]
    return VectorStore(folder_at(store_root).child(f"{_FOLDER}/{source.name}-{address}"), spec)
