"""Tile encoders a study can name, without importing one."""

from typing import ClassVar, Literal

from pydantic import BaseModel, Field, PrivateAttr, create_model, model_validator

from equipoise.models.encoders.card import ModelCard
from equipoise.models.encoders.cards import CARDS
from equipoise.models.params import StrictParams


class EncoderParams(StrictParams):
    """Base of every encoder's parameters.

    The class attributes say what the encoder requires. The main trap of feature extraction is a wrong
    resolution or tile size: nothing fails, but the features are useless. An encoder trained for certain
    pairs lists them, and a study with any other pair is refused.
    """

    #: Allowed (um/px, tile side in px); empty: any.
    pairings: ClassVar[tuple[tuple[float, int], ...]] = ()
    #: Smallest tile side in px that makes sense.
    min_tile_px: ClassVar[int] = 32
    #: GPUs per worker that the encoder is meant for; 0: runs on CPUs.
    gpus: ClassVar[float] = 0.0

    def admitted(self) -> tuple[tuple[float, int], ...]:
        """:attr:`pairings`, unless the parameters themselves say which pairs there are."""
        return self.pairings


class HandcraftedParams(EncoderParams):
    """The handcrafted encoder has nothing to set."""

    min_tile_px: ClassVar[int] = 64


class RandomConvParams(EncoderParams):
    """Parameters of the random convolutions."""

    seed: int = Field(
        default=0, ge=0, description="which random filters; features of different seeds do not mix"
    )


class TrainedParams(EncoderParams):
    """Parameters of an encoder with trained weights."""

    gpus: ClassVar[float] = 1.0

    weights: str | None = Field(default=None, description="file or folder with the weights")
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of a weights file of your own, where it is not the published one",
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="of matrix products; auto: as published on a GPU, float32 on a CPU"
    )
    batch_size: int = Field(default=32, ge=1, le=4096, description="tiles per pass through the network")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU where one is visible"
    )

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 of the weights file that these parameters admit; ``None``: any."""
        return self.sha256


class HubParams(TrainedParams):
    """Parameters of an encoder from the Hugging Face hub; without ``weights`` its local cache is searched."""

    card: ClassVar[ModelCard]

    @property
    def weights_sha256(self) -> str | None:
        """Of the file that the study names by its digest, else of the published one."""
        return self.sha256 or self.card.sha256


class CardFileParams(TrainedParams):
    """Parameters of a vision transformer that a file describes; see ``docs/encoders.md``."""

    description: str = Field(description="YAML or JSON file that describes the encoder")
    weights: str = Field(description="file or folder with the weights")

    _card: ModelCard = PrivateAttr()

    @model_validator(mode="after")
    def _read(self) -> "CardFileParams":
        from equipoise.models.encoders.card_file import read_card

        object.__setattr__(self, "_card", read_card(self.description))
        return self

    @property
    def card(self) -> ModelCard:
        """What the file says."""
        return self._card

    @property
    def weights_sha256(self) -> str | None:
        """Of the file that the study names by its digest, else of the one that the description names."""
        return self.sha256 or self.card.sha256

    def admitted(self) -> tuple[tuple[float, int], ...]:
        """The pairs of the description."""
        return self.card.pairings


class CTransPathParams(TrainedParams):
    """Parameters of CTransPath; ``weights`` is the converted checkpoint.

    Trained at 20x; the authors advise 1 um/px first, STAMP cuts tiles of 256 um.
    """

    pairings: ClassVar[tuple[tuple[float, int], ...]] = ((1.0, 224), (0.5, 224), (256 / 224, 224))
    gpus: ClassVar[float] = 0.25
    #: Name in a study.
    encoder: ClassVar[str] = "ctranspath"
    #: Name and SHA-256 of the published checkpoint, and where to get it.
    checkpoint: ClassVar[tuple[str, str]] = (
        "ctranspath.pth",
        "7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539",
    )
    source: ClassVar[str] = "https://github.com/Xiyue-Wang/TransPath"

    @property
    def weights_sha256(self) -> str | None:
        """Of the file that the study names by its digest, else of the checkpoint before its conversion."""
        return self.sha256 or self.checkpoint[1]


class ChiefCTransPathParams(CTransPathParams):
    """Parameters of the tile encoder of CHIEF: the network of CTransPath with other weights."""

    pairings: ClassVar[tuple[tuple[float, int], ...]] = ((1.0, 256),)
    encoder: ClassVar[str] = "chief_ctranspath"
    checkpoint: ClassVar[tuple[str, str]] = (
        "CHIEF_CTransPath.pth",
        "1646f23001214f74cf432ef0e80b808ee6605143802ae6ed53a87564ddc4924a",
    )
    source: ClassVar[str] = "https://github.com/hms-dbmi/CHIEF"


class T2TViTParams(TrainedParams):
    """Parameters of T2T-ViT-14 with weights of ImageNet: a region of any size is resized to 224 px."""

    min_tile_px: ClassVar[int] = 224
    gpus: ClassVar[float] = 0.25

    tokens: Literal["performer", "transformer"] = Field(
        default="performer", description="attention in the tokens-to-token module: T2T-ViT-14 or T2T-ViT_t-14"
    )


def hub_params(card: ModelCard) -> type[HubParams]:
    """The parameter model of one card."""
    model = create_model(f"{card.name}_params", __base__=HubParams, __module__=__name__, __doc__=card.line)
    model.card = card
    model.pairings = card.pairings
    return model


ENTRIES: dict[str, tuple[str, type[BaseModel], str]] = {
    "handcrafted": (
        "90 stain, texture and nucleus statistics; no weights, CPU, deterministic; a baseline",
        HandcraftedParams,
        "equipoise.models.encoders.handcrafted:Handcrafted",
    ),
    "random_conv": (
        "960 statistics of four layers of random orthogonal filters; no weights, CPU, deterministic; a baseline",
        RandomConvParams,
        "equipoise.models.encoders.random_conv:RandomConv",
    ),
    "ctranspath": (
        "CTransPath: Swin-T with convolutional stem, 768-d; checkpoint to be converted once",
        CTransPathParams,
        "equipoise.models.encoders.ctranspath:CTransPath",
    ),
    "chief_ctranspath": (
        "tile encoder of CHIEF: CTransPath with other weights, 768-d; checkpoint to be converted once",
        ChiefCTransPathParams,
        "equipoise.models.encoders.ctranspath:CTransPath",
    ),
    "t2t_vit_14": (
        "T2T-ViT-14 of ImageNet over regions of interest, 384-d; the frozen image branch of Path-GPTOmic",
        T2TViTParams,
        "equipoise.models.encoders.t2t_vit:T2TViT14",
    ),
    **{
        name: (card.line, hub_params(card), "equipoise.models.encoders.hub:HubEncoder")
        for name, card in CARDS.items()
    },
    "from_description": (
        "a vision transformer of your own, described by a YAML or JSON file: no code needed",
        CardFileParams,
        "equipoise.models.encoders.hub:HubEncoder",
    ),
}


def check_pairing(name: str, params: BaseModel | type[BaseModel], mpp: float, tile_px: int) -> None:
    """Refuse a resolution and tile size that an encoder was not made for.

    Parameters
    ----------
    name
        The encoder's name, for the message.
    params
        Its parameters; their model alone, if the pairs depend on nothing that a study sets.
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
    pairings = params.admitted() if isinstance(params, EncoderParams) else getattr(params, "pairings", ())
    if pairings and not any(abs(m / mpp - 1) <= 0.02 and px == tile_px for m, px in pairings):
        known = ", ".join(f"{m:g} um/px with {px} px" for m, px in pairings)
        raise ValueError(f"encoder {name!r} was made for {known}, not for {mpp:g} um/px with {tile_px} px")
