"""Slide encoders a study can name, without importing one."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, model_validator

from equipoise.models.params import StrictParams


class SlideEncoderParams(StrictParams):
    """Base of every slide encoder's parameters.

    An encoder with trained weights is meant for the features of certain tile encoders: with others nothing fails, but
    the vectors are useless. It lists these encoders, and a study with another one is refused.
    """

    #: Tile encoders whose features it takes; empty: any.
    tile_encoders: ClassVar[tuple[str, ...]] = ()
    #: GPUs per worker that the encoder is meant for; 0: runs on CPUs.
    gpus: ClassVar[float] = 0.0


class MeanStdParams(SlideEncoderParams):
    """Parameters of the statistics over tiles."""

    quantiles: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.1, 0.5, 0.9), description="beside mean and standard deviation; may be empty"
    )

    @model_validator(mode="after")
    def _in_order(self) -> "MeanStdParams":
        if list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must rise: {list(self.quantiles)}")
        return self


ENTRIES: dict[str, tuple[str, type[SlideEncoderParams], str]] = {
    "mean_std": (
        "mean, standard deviation and quantiles of every tile feature; no weights, CPU, deterministic; a baseline",
        MeanStdParams,
        "equipoise.models.slide_encoders.mean_std:MeanStd",
    ),
}


def check_tile_encoder(name: str, params: type[BaseModel], tile_encoder: str) -> None:
    """Refuse tile features that a slide encoder was not made for.

    Raises
    ------
    ValueError
        With the tile encoders that it knows.
    """
    known = getattr(params, "tile_encoders", ())
    if known and tile_encoder not in known:
        raise ValueError(
            f"slide encoder {name!r} was made for features of {', '.join(known)}, not of {tile_encoder}"
        )
