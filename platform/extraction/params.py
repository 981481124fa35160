"""The ``features:`` section of a study."""

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from equipoise.datasets.names import require_name
from equipoise.datasets.params import StrictParams
from equipoise.models.encoders.entries import check_pairing
from equipoise.models.slide_encoders.card import TileFeatures
from equipoise.models.slide_encoders.entries import check_tiles
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import Entry, get

#: Value of ``encoder`` in a study whose features were imported.
IMPORTED = "imported"

#: Settings of the tiling; imported features come from tiles that exist already.
_TILE_SETTINGS = (
    "encoder_params",
    "mpp",
    "tile_px",
    "resample",
    "mpp_override",
    "min_tissue",
    "min_tiles",
    "stain",
)

#: Share of unreadable tiles that a slide may have, unless the study says otherwise.
MAX_BAD_TILES = 0.05


class ImportedFeatures(StrictParams):
    """Features that were extracted elsewhere; a path or a list of paths is enough."""

    path: tuple[str, ...] = Field(
        min_length=1, description="folders of .h5 files, or one feature store; relative to the study file"
    )
    layout: Literal["auto", "stamp", "trident"] = Field("auto", description="layout of the .h5 files")
    encoder: str | None = Field(
        None, min_length=1, description="encoder of the features, if the files do not state it"
    )
    mpp: float | None = Field(
        None, ge=0.05, le=50.0, description="um per pixel of the tiles, if the files do not state it"
    )
    tile_px: int | None = Field(
        None, ge=1, le=16_384, description="side of a tile in px, if the files do not state it"
    )

    @field_validator("encoder")
    @classmethod
    def _encoder_names_a_folder(cls, encoder: str | None) -> str | None:
        return encoder and require_name(encoder, "encoder")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: Any) -> Any:
        data = {"path": data} if isinstance(data, str | list) else data
        if isinstance(data, dict) and isinstance(data.get("path"), str):
            return data | {"path": [data["path"]]}
        return data


class ExtractionParams(StrictParams):
    """Which features, from which tiles, and how many failures are tolerated."""

    imported: ImportedFeatures | None = Field(
        None,
        description="take these features instead of extracting: .h5 files of STAMP or TRIDENT, or a store",
    )
    encoder: str = Field("handcrafted", description="tile encoder, see `equipoise ls encoders`")
    encoder_params: dict[str, Any] = Field(default_factory=dict, description="parameters of the encoder")
    slide_encoder: str | None = Field(
        None,
        description="one vector per slide out of those of its tiles, see `equipoise ls slide_encoders`",
    )
    slide_encoder_params: dict[str, Any] = Field(
        default_factory=dict, description="parameters of the slide encoder"
    )
    mpp: float = Field(0.5, ge=0.1, le=5.0, description="resolution of the tiles in um per pixel")
    tile_px: int = Field(224, ge=32, le=2048, description="side of a tile in pixels")
    resample: Literal["area", "dct"] = Field(
        "area",
        description="how pixels are brought to the resolution: area averages all of them, dct decodes JPEG tiles "
        "at 1/2, 1/4 or 1/8 first (half the work and other pixels; other codecs are read by area)",
    )
    mpp_override: float | None = Field(
        None, ge=0.1, le=5.0, description="pixel size of slides for which the slides table states none"
    )
    min_tissue: float = Field(0.25, ge=0.0, le=1.0, description="minimum share of tissue in a tile")
    min_tiles: int = Field(1, ge=1, description="minimum number of tiles in a slide")
    stain: Literal["he", "brightfield", "any"] = Field(
        "brightfield",
        description="slides that are accepted: brightfield refuses fluorescence and grey levels and remarks stains "
        "other than H&E, he refuses those too, any takes everything",
    )
    max_bad_tiles: float = Field(
        MAX_BAD_TILES,
        ge=0.0,
        lt=1.0,
        description="share of unreadable tiles a slide may have; of imported features, of vectors with NaN or infinity",
    )
    max_fail: float = Field(0.05, ge=0.0, le=1.0, description="share of slides that may fail")
    store: str = Field("features", description="folder of feature stores, relative to the study file")
    chunk_tiles: int = Field(
        4096, ge=1, description="a slide with more tiles than that is encoded by several workers at once"
    )
    shard_slides: int = Field(32, ge=1, description="slides per file of a new store")
    retry: bool = Field(False, description="try slides again that failed or were excluded")

    @model_validator(mode="before")
    @classmethod
    def _imported_or_encoded(cls, data: Any) -> Any:
        """``encoder`` is ``imported`` where features are imported, so that a study written out in full reads back."""
        if not isinstance(data, dict) or data.get("imported") is None:
            return data
        given = data.get("encoder", IMPORTED)
        if given != IMPORTED:
            raise ValueError(
                f"'imported' uses existing features, 'encoder: {given}' extracts new ones: leave one of them out"
            )
        return data | {"encoder": IMPORTED}

    @model_validator(mode="after")
    def _encoder_fits(self) -> "ExtractionParams":
        if self.imported is not None:
            # Compared with the defaults, not with model_fields_set: a study written out in full must read back.
            fields = type(self).model_fields
            changed = [
                name
                for name in _TILE_SETTINGS
                if getattr(self, name) != fields[name].get_default(call_default_factory=True)
            ]
            if changed:
                raise ValueError(
                    f"{', '.join(changed)}: imported features come from tiles that exist already; leave it out "
                    "(if the files do not state mpp and tile_px, write them under imported)"
                )
            return self
        if self.encoder == IMPORTED:
            raise ValueError("encoder 'imported' needs 'imported': a folder of .h5 files or a feature store")
        entry = _checked("encoders", self.encoder, self.encoder_params, "encoder_params")
        check_pairing(self.encoder, entry.params.model_validate(self.encoder_params), self.mpp, self.tile_px)
        return self

    @model_validator(mode="after")
    def _slide_encoder_fits(self) -> "ExtractionParams":
        if self.slide_encoder is None:
            if self.slide_encoder_params:
                raise ValueError("slide_encoder_params needs slide_encoder")
            return self
        entry = _checked(
            "slide_encoders", self.slide_encoder, self.slide_encoder_params, "slide_encoder_params"
        )
        if self.imported is None:  # the encoder of imported features is checked when they are read
            check_tiles(entry.name, entry.params, self.tile_features())
        return self

    def tile_features(self) -> TileFeatures:
        """The tile features that the study asks for; those of imported files stand in their store."""
        params = get("encoders", self.encoder).params.model_validate(self.encoder_params)
        sha256 = getattr(params, "weights_sha256", None)
        return TileFeatures(self.encoder, self.mpp, self.tile_px, sha256=sha256)


def _checked(kind: str, name: str, given: dict[str, Any], section: str) -> Entry:
    """The entry of that name with its parameters checked; raises ``ValueError``, which pydantic collects."""
    try:
        entry = get(kind, name)
    except StudyError as error:
        raise ValueError(str(error)) from error
    try:
        entry.params.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{section}.{path}: {first['msg']}") from error
    return entry
