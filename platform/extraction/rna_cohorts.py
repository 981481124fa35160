"""The RNA of a study's cohorts through its encoder: encoded by the step ``extract``, read in place of the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.expression import to_linear
from equipoise.datasets.omics.params import RnaEncoderSource, RnaParams
from equipoise.models.rna.protocol import Identity
from equipoise.platform.errors import StudyError
from equipoise.platform.extraction.rna_encoders import identify_rna_encoder, require_usable_expression
from equipoise.platform.extraction.rna_vectors import Profiles, encode_profiles, rna_store

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cohort import Cohorts

log = logging.getLogger("equipoise")


def encode_cohorts(
    cohorts: Cohorts,
    params: RnaParams,
    base: Path,
    store_root: str | Path,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    session: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> str:
    """Compute the vectors of all patients with RNA that the store does not have; returns the store's address.

    Raises
    ------
    DataError, ResourceError
        As :func:`encode_profiles`; DataError also for RNA of a kind that the encoder cannot use.
    """
    source = _source(params)
    require_usable_expression(source, cohorts)
    identity = identify_rna_encoder(source, base)
    store = rna_store(source, identity, store_root)
    for _, profiles in _profiles(cohorts):
        options = {
            "workers": workers,
            "gpus_per_worker": gpus_per_worker,
            "session": session,
            "store": store,
            "identity": identity,
        }
        encode_profiles(profiles, source, base, **options)  # type: ignore[arg-type]
    log.info("rna encoder=%s vectors=%s", source.name, store.address)
    return store.address


def with_rna_vectors(cohorts: Cohorts, params: RnaParams, base: Path, store_root: str | Path) -> Cohorts:
    """Cohorts whose modality ``rna`` is the encoder's vectors, through the adapter if there is one.

    A patient whose profile the encoder could not read counts as one without RNA, and leaves if there is nothing else.

    Raises
    ------
    DataError
        If vectors are missing: the step ``extract`` makes them.
    StudyError
        If the adapter was made for another encoder.
    """
    import pandas as pd

    source = _source(params)
    require_usable_expression(source, cohorts)
    identity = identify_rna_encoder(source, base)
    store = rna_store(source, identity, store_root)
    known = store.read()
    parts, patients = [np.empty((0, identity.dim), np.float32)], []
    for names, profiles in _profiles(cohorts):
        keys = profiles.keys()
        if absent := [key for key in keys if key not in known]:
            raise DataError(
                f"{len(absent)} of {len(keys)} RNA profiles were not encoded yet",
                where=store.address,
                fix="run `equipoise extract`",
            )
        parts.append(np.stack([known[key] for key in keys]))
        patients += names
    vectors = np.concatenate(parts)
    if params.adapter is not None:
        vectors = _adapted(vectors, params.adapter, source, identity, base)
    columns = [f"{source.name} {i + 1}" for i in range(vectors.shape[1])]
    table = pd.DataFrame(vectors, index=pd.Index(patients, name="patient"), columns=columns)
    table = table.reindex([patient for patient in cohorts.omics["rna"].index if patient in table.index])
    return _without_unread(cohorts, source.name, table)


def _source(params: RnaParams) -> RnaEncoderSource:
    if params.encoder is None:
        raise ValueError("the study names no RNA encoder")
    return params.encoder


def _profiles(cohorts: Cohorts) -> Iterator[tuple[list[str], Profiles]]:
    """Patients and profiles of every cohort with RNA, on the linear scale unless they are z-scores."""
    table: pd.DataFrame | None = cohorts.omics.get("rna")
    if table is None:
        return
    genes = tuple(map(str, table.columns))
    cohort_of = dict(zip(cohorts.patients["patient"], cohorts.patients["cohort"], strict=True))
    for name, expression in cohorts.expression.items():
        patients = [patient for patient in table.index if cohort_of.get(patient) == name]
        if not patients:
            continue
        values, kind = table.loc[patients].to_numpy(np.float32), str(expression.kind)
        if kind == "log":
            values, kind = to_linear(values, kind, expression.base, expression.pseudocount), "tpm"
        yield patients, Profiles(values, genes, kind)


def _adapted(
    vectors: NDArray[np.float32], folder: str, source: RnaEncoderSource, identity: Identity, base: Path
) -> NDArray[np.float32]:
    """Vectors through an adapter that was made for this encoder."""
    from equipoise.models.gptomic.smoothing import load_adapter

    where = "tables.rna.adapter"
    try:
        adapter = load_adapter(base / Path(folder).expanduser())
        adapter.require_encoder(source.name, identity.fingerprint)
    except (FileNotFoundError, ValueError) as error:
        what, _, fix = str(error).partition("\n")
        raise StudyError(what, where=where, fix=fix or None) from error
    return adapter(vectors)


def _without_unread(cohorts: Cohorts, name: str, table: pd.DataFrame) -> Cohorts:
    """The cohorts with this table; patients whose row is NaN have none."""
    unread = list(table.index[table.isna().any(axis=1)])
    table = table.drop(index=unread)
    notes: tuple[str, ...] = (f"rna: encoded by {name}, {len(table)} patients, {table.shape[1]} columns",)
    if unread:
        shown = ", ".join(map(str, unread[:3]))
        notes += (
            f"rna: {len(unread)} patients without an expressed gene that {name} reads count as without RNA: {shown}",
        )
    result = replace(cohorts, omics=cohorts.omics | {"rna": table}, notes=cohorts.notes + notes)
    others = {patient for other in result.omics.values() for patient in other.index}
    others |= set(cohorts.slides["patient"])
    bare = [patient for patient in unread if patient not in others]
    if not bare:
        return result
    return result.drop(dict.fromkeys(bare, f"no expressed gene that RNA encoder {name} reads"), "rna encoded")
