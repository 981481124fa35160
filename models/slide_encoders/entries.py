"""Slide encoders a study can name, without importing one."""

from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field, create_model, model_validator

from equipoise.models.params import StrictParams
from equipoise.models.slide_encoders.card import (
    GATED_ATTENTION,
    GRIDS,
    HUB_MODELS,
    LONGNET,
    GatedAttentionCard,
    GridCard,
    GridShape,
    HubModelCard,
    LongNetCard,
    Pairing,
    SlideCard,
    TileFeatures,
)


class SlideEncoderParams(StrictParams):
    """Base of every slide encoder's parameters.

    An encoder with trained weights is meant for certain tile features: with others nothing fails, but the vectors are
    useless. It lists them, and a study with others is refused.
    """

    #: Tile features that it takes, by tile encoder, resolution, tile size, length and weights; empty: any.
    pairings: ClassVar[tuple[Pairing, ...]] = ()
    #: GPUs per worker that the encoder is meant for; 0: runs on CPUs.
    gpus: ClassVar[float] = 0.0
    #: Parameters that are paths, relative to the study file.
    paths: ClassVar[tuple[str, ...]] = ()

    @property
    def pretrained_folder(self) -> str | None:
        """Folder of ``equipoise pretrain`` that the encoder comes from, ``None`` for others: it says which tiles the
        encoder takes, and on which patients nobody may test it."""
        return None


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


class RandomTransformerParams(SlideEncoderParams):
    """Parameters of the transformer with random weights."""

    seed: int = Field(
        default=0, ge=0, description="which random weights; vectors of different seeds do not mix"
    )
    width: int = Field(default=192, ge=16, le=1024, multiple_of=16, description="width of a token")
    depth: int = Field(default=4, ge=1, le=24, description="number of stages")
    heads: Literal[1, 2, 4, 8] = Field(default=4, description="heads of each attention")


class GridVitParams(SlideEncoderParams):
    """Parameters of the grid transformer with random weights; 768, 6 and 12 make it as large as TITAN's."""

    seed: int = Field(
        default=0, ge=0, description="which random weights; vectors of different seeds do not mix"
    )
    width: int = Field(default=192, ge=16, le=1536, description="width of a token")
    depth: int = Field(default=4, ge=1, le=48, description="number of blocks, each a stage")
    heads: int = Field(default=4, ge=1, description="heads of each attention; must divide width")
    registers: int = Field(
        default=0, ge=0, description="tokens beside the class token that belong to no tile"
    )
    pooling: Literal["attention", "class_token"] = Field(
        default="attention", description="what a query finds in all tokens, or the class token"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="cpu", description="auto: a GPU where one is visible"
    )

    @model_validator(mode="after")
    def _heads_share(self) -> "GridVitParams":
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads cannot share a width of {self.width}")
        return self

    def shape(self, tile_dim: int) -> GridShape:
        """Sizes for tile features of length ``tile_dim``."""
        return GridShape(
            tile_dim,
            self.width,
            self.depth,
            self.heads,
            4 * self.width,
            registers=self.registers,
            pooling=self.pooling,
        )


class PublishedParams(SlideEncoderParams):
    """Parameters of a slide encoder with published weights."""

    weights: str | None = Field(default=None, description="file or folder with the weights")
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of a weights file of your own, where it is not the published one",
    )


class PretrainedModelParams(SlideEncoderParams):
    """Parameters of a slide encoder of one's own."""

    paths: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str = Field(description="what `equipoise pretrain` wrote: runs/<study>/pretrain/model")
    readout: Literal["mean", "joined"] = Field(
        default="mean",
        description="of a model with a vector for each task (joint, abmil with branches: task): their mean, or one "
        "behind the other; the others have one vector",
    )

    @property
    def pretrained_folder(self) -> str | None:
        """The folder."""
        return self.folder


class GatedAttentionParams(PublishedParams):
    """Parameters of a slide encoder with gated attention."""

    card: ClassVar[GatedAttentionCard]


class LongNetParams(PublishedParams):
    """Parameters of a slide encoder with dilated attention.

    The published readouts differ. Class token with the final norm is that of the authors' page, without it that of
    their pipeline; in a demonstration they prefer the mean, because the class token was not trained.
    """

    card: ClassVar[LongNetCard]
    gpus: ClassVar[float] = 1.0

    readout: Literal["mean", "class_token"] = Field(
        default="mean", description="mean of the tiles' tokens, or the class token"
    )
    final_norm: bool = Field(default=False, description="apply the encoder's last norm before the readout")
    layers: int = Field(default=12, ge=1, le=12, description="how many layers run; TRIDENT reads after 11")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU where one is visible"
    )


class HubModelParams(PublishedParams):
    """Parameters of a slide encoder that brings its own code."""

    card: ClassVar[HubModelCard]
    gpus: ClassVar[float] = 1.0

    trust_remote_code: bool = Field(
        default=False, description="run the code in the folder with the weights: it may do anything"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU where one is visible"
    )


class GridWeightsParams(PublishedParams):
    """Parameters of a grid transformer with published weights."""

    card: ClassVar[GridCard]
    gpus: ClassVar[float] = 1.0

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU where one is visible"
    )


P = TypeVar("P", bound=PublishedParams)


def params_of(card: SlideCard, base: type[P]) -> type[P]:
    """The parameter model of one card."""
    model = create_model(f"{card.name}_params", __base__=base, __module__=__name__, __doc__=card.line)
    model.card = card  # type: ignore[attr-defined]
    model.pairings = (card.pairing, *card.also)
    return model


ENTRIES: dict[str, tuple[str, type[SlideEncoderParams], str]] = {
    "mean_std": (
        "mean, standard deviation and quantiles of every tile feature; no weights, CPU, deterministic; a baseline",
        MeanStdParams,
        "equipoise.models.slide_encoders.mean_std:MeanStd",
    ),
    "random_transformer": (
        "a small transformer over tiles and their places, random weights of a fixed seed, in stages; a baseline",
        RandomTransformerParams,
        "equipoise.models.slide_encoders.random_transformer:RandomTransformer",
    ),
    "grid_vit": (
        "a transformer over the grid of tiles with ALiBi in two dimensions and attention pooling, random weights of a "
        "fixed seed, in stages; a baseline",
        GridVitParams,
        "equipoise.models.slide_encoders.grid_vit:GridVit",
    ),
    "pretrained": (
        "a model of your own from `equipoise pretrain`: what its heads would read",
        PretrainedModelParams,
        "equipoise.models.slide_encoders.pretrained_model:PretrainedModelEncoder",
    ),
    **{
        name: (
            card.line,
            params_of(card, GatedAttentionParams),
            "equipoise.models.slide_encoders.gated_attention:GatedAttentionEncoder",
        )
        for name, card in GATED_ATTENTION.items()
    },
    **{
        name: (
            card.line,
            params_of(card, LongNetParams),
            "equipoise.models.slide_encoders.longnet:LongNetEncoder",
        )
        for name, card in LONGNET.items()
    },
    **{
        name: (
            card.line,
            params_of(card, HubModelParams),
            "equipoise.models.slide_encoders.titan:Titan",
        )
        for name, card in HUB_MODELS.items()
    },
    **{
        name: (
            card.line,
            params_of(card, GridWeightsParams),
            "equipoise.models.slide_encoders.moozy:Moozy",
        )
        for name, card in GRIDS.items()
    },
}


def check_tiles(name: str, params: type[BaseModel], tiles: TileFeatures) -> None:
    """Refuse tile features that a slide encoder was not made for.

    Parameters
    ----------
    name
        The slide encoder's name, for the message.
    params
        Its parameter model.
    tiles
        What the study asks for, or what a store holds.

    Raises
    ------
    ValueError
        With the differences from the pairing that comes nearest.
    """
    known: tuple[Pairing, ...] = getattr(params, "pairings", ())
    differences = [pairing.differences(tiles) for pairing in known]
    if known and all(differences):
        nearest = min(differences, key=lambda found: (any(" of " in part for part in found), len(found)))
        raise ValueError(f"slide encoder {name!r} was made for {'; '.join(nearest)}")
