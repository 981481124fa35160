"""What is known of a published slide encoder, as data: its weights, and the tile features that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from equipoise.models.encoders.cards import CARDS


@dataclass(frozen=True)
class TileFeatures:
    """Tile features, as a study asks for them or a store holds them.

    Attributes
    ----------
    encoder
        Name of the tile encoder.
    mpp, tile_px
        um per pixel and side of a tile in px.
    dim
        Length of a vector; ``None``: not known yet.
    sha256
        Of the file with the tile encoder's weights; ``None``: not known, as with imported features, or no weights.
    """

    encoder: str
    mpp: float
    tile_px: int
    dim: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Pairing:
    """Tile features that a slide encoder was made for; what is ``None`` does not matter to it.

    Attributes
    ----------
    encoder
        Name of the tile encoder.
    mpp, tile_px
        um per pixel (2 % are granted) and side of a tile in px.
    dim
        Length of a vector.
    sha256
        Of the file with the tile encoder's weights.
    aliases
        Names of the same tile encoder in files of other tools.
    """

    encoder: str
    mpp: float | None = None
    tile_px: int | None = None
    dim: int | None = None
    sha256: str | None = None
    aliases: tuple[str, ...] = ()

    def differences(self, tiles: TileFeatures) -> list[str]:
        """``"0.5 um/px, not 1"`` for everything in which tile features are others."""
        found = []
        if tiles.encoder not in (self.encoder, *self.aliases):
            found.append(f"features of {self.encoder}, not of {tiles.encoder}")
        if self.mpp is not None and abs(self.mpp / tiles.mpp - 1) > 0.02:
            found.append(f"{self.mpp:g} um/px, not {tiles.mpp:g}")
        if self.tile_px is not None and self.tile_px != tiles.tile_px:
            found.append(f"tiles of {self.tile_px} px, not {tiles.tile_px}")
        if self.dim is not None and tiles.dim is not None and self.dim != tiles.dim:
            found.append(f"{self.dim} features per tile, not {tiles.dim}")
        if self.sha256 is not None and tiles.sha256 is not None and self.sha256 != tiles.sha256:
            found.append(f"weights {self.sha256[:12]}… of the tile encoder, not {tiles.sha256[:12]}…")
        return found


@dataclass(frozen=True, kw_only=True)
class SlideCard:
    """One slide encoder with published weights.

    Attributes
    ----------
    name, line
        Name in a study, and what it is in one line.
    hub, file, sha256
        ``organisation/model`` on the Hugging Face hub (empty: not there), the file that holds the weights, and its
        SHA-256; ``None``: no digest is known.
    source
        Where the weights are to be had.
    licence, gated
        Licence of the weights; whether terms have to be accepted first.
    pairing, also
        The tile features it takes, whose ``dim`` is the input's width; others of the same length.
    nested, renames, drops
        As of :class:`~equipoise.models.encoders.card.ModelCard`.
    """

    name: str
    line: str
    hub: str
    source: str
    file: str
    sha256: str | None
    licence: str
    gated: bool
    pairing: Pairing
    also: tuple[Pairing, ...] = ()
    nested: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    drops: tuple[str, ...] = ()

    #: Where a study sets its parameters.
    section: ClassVar[str] = "slide_encoder_params"

    @property
    def dim(self) -> int:
        """Length of a slide's vector."""
        raise NotImplementedError

    @property
    def tile_dim(self) -> int:
        """Length of a tile's vector."""
        if self.pairing.dim is None:
            raise ValueError(f"the card of {self.name} does not say how long tile vectors are")
        return self.pairing.dim


@dataclass(frozen=True, kw_only=True)
class GatedAttentionCard(SlideCard):
    """A slide encoder with gated attention (Ilse et al., arXiv 1802.04712).

    Attributes
    ----------
    hidden, attention
        Widths of the layer before the attention and of the attention itself.
    pools
        What the attention's weights average: the hidden vectors, or the tile features themselves.
    """

    hidden: int
    attention: int
    pools: Literal["hidden", "tiles"]

    @property
    def dim(self) -> int:
        """Length of what is averaged."""
        return self.hidden if self.pools == "hidden" else self.tile_dim


@dataclass(frozen=True, kw_only=True)
class LongNetCard(SlideCard):
    """A slide encoder with dilated attention.

    Attributes
    ----------
    width, depth, heads, mlp
        Width of a token, number of layers, heads of each attention, hidden width of a perceptron.
    """

    width: int
    depth: int
    heads: int
    mlp: int

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.width


@dataclass(frozen=True)
class GridShape:
    """Dimensions of a vision transformer on the grid of tiles.

    Attributes
    ----------
    tile_dim, width, depth, heads, mlp
        Length of a tile's vector, width of a token, blocks, heads of each attention, hidden width of a perceptron.
    registers
        Tokens behind the class token that carry nothing of a tile.
    epsilon
        Of every LayerNorm.
    pooling
        How tokens become a vector: a learned query that attends to them, or the class token.
    """

    tile_dim: int
    width: int
    depth: int
    heads: int
    mlp: int
    registers: int = 0
    epsilon: float = 1e-6
    pooling: Literal["attention", "class_token"] = "attention"


@dataclass(frozen=True, kw_only=True)
class GridCard(SlideCard):
    """A grid transformer with published weights.

    Attributes
    ----------
    shape
        Its sizes.
    """

    shape: GridShape

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.shape.width


@dataclass(frozen=True, kw_only=True)
class HubModelCard(SlideCard):
    """A slide encoder whose network is code beside its weights.

    Attributes
    ----------
    width
        Length of a slide's vector.
    """

    width: int

    @property
    def dim(self) -> int:
        """The same."""
        return self.width


def _tiles(encoder: str, mpp: float, tile_px: int, *aliases: str) -> Pairing:
    """A pairing with the published weights of a tile encoder."""
    card = CARDS[encoder]
    return Pairing(encoder, mpp, tile_px, card.dim, card.sha256, aliases)


def _feather(name: str, hub: str, sha256: str, pairing: Pairing) -> GatedAttentionCard:
    return GatedAttentionCard(
        name=name,
        line=f"FEATHER (Mahmood Lab): gated attention over {pairing.encoder} tiles, pre-trained on 108 classes, 512-d",
        hub=f"MahmoodLab/{hub}",
        source=f"https://huggingface.co/MahmoodLab/{hub}",
        file="model.safetensors",
        sha256=sha256,
        licence="CC-BY-NC-ND 4.0",
        gated=True,
        pairing=pairing,
        hidden=512,
        attention=384,
        pools="hidden",
        renames=(("model.patch_embed.0.", "embed."), ("model.global_attn.", "attention.")),
    )


#: Slide encoders with gated attention by their names.
GATED_ATTENTION: dict[str, GatedAttentionCard] = {
    card.name: card
    for card in (
        _feather(
            "feather_conch_v1_5",
            "abmil.base.conch_v15.pc108-24k",
            "08a40daa9e00cca62c65d26f00f7765f5c1b2fe58532806aeda521cb1bc8a708",
            _tiles("conch_v1_5", 0.5, 512, "conch_v15"),
        ),
        _feather(
            "feather_uni2_h",
            "abmil.base.uni_v2.pc108-24k",
            "d9c2612d55615999043539f6abc4fe44902ed1680fdbfb3bc81f6b2915ba451d",
            _tiles("uni2_h", 0.5, 256, "uni_v2"),
        ),
        _feather(
            "feather_uni",
            "abmil.base.uni.pc108-24k",
            "19b7edb4582ea534f63c74b8b83735c0529388d1b8f26945786cce9d0b4aea19",
            _tiles("uni", 0.5, 256, "uni_v1"),
        ),
        GatedAttentionCard(
            name="chief",
            line="CHIEF: gated attention that averages the tiles of its own CTransPath, 768-d",
            hub="",
            source="https://github.com/hms-dbmi/CHIEF",
            file="CHIEF_pretraining.pth",
            sha256="6a46d200b32a65e5ce4774611b889b5f1bbf7a39f9111321a2a1b5dbdb9996b8",
            licence="AGPL-3.0",
            gated=False,
            pairing=Pairing(
                "chief_ctranspath",
                1.0,
                256,
                768,
                "1646f23001214f74cf432ef0e80b808ee6605143802ae6ed53a87564ddc4924a",
            ),
            hidden=512,
            attention=256,
            pools="tiles",
            renames=(("attention_net.0.", "embed."), ("attention_net.3.", "attention.")),
            drops=("classifiers.", "att_head.", "text_to_vision.", "organ_embedding"),
        ),
    )
}

#: Slide encoders with dilated attention by their names.
LONGNET: dict[str, LongNetCard] = {
    card.name: card
    for card in (
        LongNetCard(
            name="gigapath_slide",
            line="Prov-GigaPath slide encoder: LongNet with 12 layers of dilated attention, 768-d",
            hub="prov-gigapath/prov-gigapath",
            source="https://huggingface.co/prov-gigapath/prov-gigapath",
            file="slide_encoder.pth",
            sha256="04194a4c393e6a713b144356791c0d2e27ca769ee50c6e111fd6abc1f17ed551",
            licence="Apache 2.0, with restrictions in the card",
            gated=True,
            pairing=_tiles("gigapath", 0.5, 256),
            nested=("model",),
            width=768,
            depth=12,
            heads=16,
            mlp=3072,
        ),
    )
}

#: Slide encoders that bring their own code, by their names.
HUB_MODELS: dict[str, HubModelCard] = {
    card.name: card
    for card in (
        HubModelCard(
            name="titan",
            line="TITAN: transformer over the grid of CONCH v1.5 tiles, 768-d; runs its own code, if a study allows it",
            hub="MahmoodLab/TITAN",
            source="https://huggingface.co/MahmoodLab/TITAN",
            file="model.safetensors",
            sha256="4e92128317dca5c9e47d8173467105c21e4095f88d3bde9077e7f1e784b195fe",
            licence="CC-BY-NC-ND 4.0",
            gated=True,
            pairing=_tiles("conch_v1_5", 0.5, 512, "conch_v15"),
            width=768,
        ),
    )
}

#: Grid transformers by their names.
GRIDS: dict[str, GridCard] = {
    card.name: card
    for card in (
        GridCard(
            name="moozy",
            line="MOOZY: transformer over the grid of Lunit ViT-S/8 tiles, 768-d; its slide encoder alone",
            hub="AtlasAnalyticsLab/MOOZY",
            source="https://huggingface.co/AtlasAnalyticsLab/MOOZY",
            file="moozy.pt",
            sha256=None,
            licence="CC-BY-NC-SA 4.0",
            gated=False,
            pairing=_tiles("lunit_vits8", 0.5, 224),
            also=(_tiles("lunit_vits8", 0.25, 224),),
            nested=("teacher_slide_encoder",),
            drops=("mask_token",),
            shape=GridShape(384, 768, 6, 12, 3072, registers=4, epsilon=1e-5, pooling="class_token"),
        ),
    )
}

#: Every card by its name.
SLIDE_CARDS: dict[str, SlideCard] = {**GATED_ATTENTION, **LONGNET, **HUB_MODELS, **GRIDS}
