"""Tile encoders a study can name, without importing one."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class EncoderParams(BaseModel):
    """Base of every encoder's parameters.

    The class attributes say what the encoder needs around it. The main trap of feature extraction is a wrong
    resolution or tile size: nothing fails, the features are just useless. An encoder trained for certain
    pairs lists them, and the study is refused with any other.
    """

    model_config = ConfigDict(extra="forbid")

    #: Allowed (um/px, tile side in px); empty: any.
    pairings: ClassVar[tuple[tuple[float, int], ...]] = ()
    #: Smallest tile side in px that makes sense.
    min_tile_px: ClassVar[int] = 32
    #: GPUs per worker that the encoder is meant for; 0: runs on CPUs.
    gpus: ClassVar[float] = 0.0


class HandcraftedParams(EncoderParams):
    """The handcrafted encoder has nothing to set."""

    min_tile_px: ClassVar[int] = 64


ENTRIES: dict[str, tuple[str, type[BaseModel], str]] = {
    "handcrafted": (
        "90 stain, texture and nucleus statistics; no weights, CPU, deterministic; a baseline",
        HandcraftedParams,
        "equipoise.models.encoders.handcrafted:Handcrafted",
    ),
}


def check_pairing(name: str, params: type[BaseModel], mpp: float, tile_px: int) -> None:
    """Refuse a resolution and tile size that an encoder was not made for.

    Parameters
    ----------
    name
        The encoder's name, for the message.
    params
        Its parameter model.
    mpp, tile_px
        What the study asks for.

    Raises
    ------
    ValueError
        With the pairs that the encoder knows.
    """
    smallest = getattr(params, "min_tile_px", 1)
    if tile_px < smallest:
        raise ValueError(f"encoder {name!r} needs tiles of at least {smallest} px, not {tile_px}")
    pairings = getattr(params, "pairings", ())
    if pairings and not any(abs(m / mpp - 1) <= 0.02 and px == tile_px for m, px in pairings):
        known = ", ".join(f"{m:g} um/px with {px} px" for m, px in pairings)
        raise ValueError(f"encoder {name!r} was made for {known}, not for {mpp:g} um/px with {tile_px} px")
