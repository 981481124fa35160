"""Whether features are those that a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.store.spec import StoreSpec, read_spec
from equipoise.platform.errors import DataError
from equipoise.platform.extraction.slide_vectors import trained_tiles
from equipoise.platform.prediction.exported_model import ExportedModel, FeatureSpec

if TYPE_CHECKING:
    from equipoise.datasets.store.feature_store import FeatureStore

#: How a store says that nobody knows with which weights its features were made.
_IMPORTED = "imported: "


def feature_spec(model: ExportedModel, where: str) -> FeatureSpec:
    """The features that a model reads.

    Raises
    ------
    DataError
        If it reads none.
    """
    if model.config.features is None:
        raise DataError(
            f"this model reads tables only ({', '.join(model.config.tables.modalities)}), no slide",
            where=where,
            fix="give it tables: --tables NAME=FILE",
        )
    return model.config.features


def check_store(model: ExportedModel, store: Path) -> None:
    """Refuse a store of tiles that the model was not trained on.

    Raises
    ------
    DataError
        Naming everything that differs.
    """
    require_same_tiles(feature_spec(model, "--features").tiles, read_spec(store)[0], where=str(store))


def require_same_tiles(
    trained: StoreSpec, found: StoreSpec, *, where: str, accept_imported: bool = False
) -> list[str]:
    """Refuse features of another encoder, other weights, another length, resolution or tile size.

    Parameters
    ----------
    trained, found
        What made the features of training, and these.
    where
        Where these are.
    accept_imported
        Take the word of whoever imported features of the same encoder, whose weights nobody can compare.

    Returns
    -------
    Remarks: what differs and is not refused.

    Raises
    ------
    DataError
        Naming everything that differs.
    """
    unverified = trained.encoder == found.encoder and (
        trained.encoder_hash.startswith(_IMPORTED) != found.encoder_hash.startswith(_IMPORTED)
    )
    before, now = trained_tiles(trained), trained_tiles(found)
    if unverified and accept_imported:
        now = trained_tiles(StoreSpec(**{**vars(found), "encoder_hash": trained.encoder_hash}))
    if differences := before.differences(now):
        fix = f"extract the slides with {trained.encoder} at {trained.mpp:g} um/px, tiles of {trained.tile_px} px"
        if unverified:
            fix += "; or say with --accept-imported that these features come from the same weights"
        raise DataError(f"the model was trained on {'; '.join(differences)}", where=where, fix=fix)
    remarks = ["encoder weights not verified"] if unverified else []
    read = {"resample": (trained.resample, found.resample), "tissue": (trained.tissue, found.tissue)}
    known = not (trained.encoder_hash.startswith(_IMPORTED) or found.encoder_hash.startswith(_IMPORTED))
    return remarks + [f"other {name} than in training" for name, (a, b) in read.items() if known and a != b]


def require_same_store(features: FeatureSpec, store: FeatureStore, *, where: str) -> None:
    """Refuse vectors of slides that another slide encoder made, where the model reads some.

    Raises
    ------
    DataError
        Naming both encoders.
    """
    wanted, found = features.reads, store.spec
    if (wanted.encoder, wanted.dim) != (found.encoder, found.dim) or (
        features.reads != features.tiles and wanted.encoder_hash != found.encoder_hash
    ):
        raise DataError(
            f"the model reads {wanted.encoder} {wanted.encoder_hash[:12]} of {wanted.dim} numbers, these are "
            f"{found.encoder} {found.encoder_hash[:12]} of {found.dim}",
            where=where,
            fix="use the slide encoder, its weights and its parameters that the model was trained on",
        )
