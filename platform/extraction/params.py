"""The ``features:`` section of a study."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from equipoise.models.encoders.entries import check_pairing
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import get


class ExtractionParams(BaseModel):
    """Which features, from which tiles, and how many failures are tolerated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str = Field("handcrafted", description="tile encoder, see `equipoise ls encoders`")
    encoder_params: dict[str, Any] = Field(default_factory=dict, description="parameters of the encoder")
    mpp: float = Field(0.5, ge=0.1, le=5.0, description="resolution of the tiles in um per pixel")
    tile_px: int = Field(224, ge=32, le=2048, description="side of a tile in pixels")
    resample: Literal["area", "dct"] = Field(
        "area",
        description="how pixels are brought to the resolution: area averages all of them, dct decodes JPEG tiles "
        "at 1/2, 1/4 or 1/8 first (half the work and other pixels; other codecs are read by area)",
    )
    mpp_override: float | None = Field(
        None, ge=0.1, le=5.0, description="pixel size of every slide whose table row states none"
    )
    min_tissue: float = Field(0.25, ge=0.0, le=1.0, description="least share of tissue in a tile")
    min_tiles: int = Field(1, ge=1, description="least number of tiles in a slide")
    max_bad_tiles: float = Field(
        0.05, ge=0.0, lt=1.0, description="share of unreadable tiles a slide may have"
    )
    max_fail: float = Field(0.05, ge=0.0, le=1.0, description="share of slides that may fail")
    store: str = Field("features", description="folder of feature stores, relative to the study file")
    shard_slides: int = Field(32, ge=1, description="slides per file of a new store")
    retry: bool = Field(False, description="try slides again that failed or were excluded")

    @model_validator(mode="after")
    def _encoder_fits(self) -> "ExtractionParams":
        try:
            entry = get("encoders", self.encoder)
        except StudyError as error:
            raise ValueError(str(error)) from error
        try:
            entry.params.model_validate(self.encoder_params)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"encoder_params.{place}: {first['msg']}") from error
        check_pairing(self.encoder, entry.params, self.mpp, self.tile_px)
        return self
