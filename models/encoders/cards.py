"""Facts on each hub encoder, as data: where its weights are and how tiles are prepared for it.

Sources: the model cards and configurations named by ``hub`` (as transcribed in public registries), parameter counts
published for them. A licence stands here for orientation only; the model card decides.

CONCH v1.5 is left out: its definition (a vision transformer with an attentional pooler) is published only as code
under CC-BY-NC-ND, which may neither be copied nor adapted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from equipoise.models.encoders.shape import VitShape

Precision = Literal["float32", "float16", "bfloat16"]
#: How a tile larger than the input becomes the input.
Fit = Literal["bilinear", "bicubic", "crop"]
#: Allowed (um/px, tile side in px).
Pairings = tuple[tuple[float, int], ...]

Triple = tuple[float, float, float]

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BIOPTIMUS: tuple[Triple, Triple] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HALVES: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_AT_20X: Pairings = ((0.5, 224),)
#: Published work with these encoders cuts tiles of 256 px at 20x and resizes them.
_AT_20X_OR_256: Pairings = ((0.5, 224), (0.5, 256))
_FOUR_SCALES: Pairings = ((0.25, 224), (0.5, 224), (1.0, 224), (2.0, 224))


@dataclass(frozen=True)
class ModelCard:
    """One encoder whose weights live on the Hugging Face hub.

    Attributes
    ----------
    name, line
        Name in a study, and what it is in one line.
    hub
        ``organisation/model``.
    shape
        Dimensions of its vision transformer.
    pairings
        Resolutions and tile sizes it is meant for.
    licence, gated
        Licence of the weights as the card names it; whether terms have to be accepted first.
    normalisation
        Mean and standard deviation per channel of pixels between 0 and 1.
    fit
        How larger tiles reach the input size.
    precision
        Of matrix products on a GPU.
    layout
        Names in the weights file: timm's, or those of transformers' ``Dinov2Model``.
    """

    name: str
    line: str
    hub: str
    shape: VitShape
    licence: str
    gated: bool
    pairings: Pairings = _AT_20X
    normalisation: tuple[Triple, Triple] = IMAGENET
    fit: Fit = "bicubic"
    precision: Precision = "float16"
    layout: Literal["timm", "dinov2"] = "timm"

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.shape.dim


_LARGE_16 = VitShape(width=1024, depth=24, heads=16, patch=16, mlp=4096)
_HUGE_14 = VitShape(1280, 32, 16, patch=14, mlp=6832, swiglu=True, pooling="token_and_mean")
_HUGE_14_REGISTERS = VitShape(
    1280, 32, 16, patch=14, mlp=6832, swiglu=True, registers=4, pooling="token_and_mean"
)
_GIANT_14_REGISTERS = VitShape(
    1536, 40, 24, patch=14, mlp=8192, swiglu=True, registers=4, prefix_positions=False
)

_NC_ND = "CC-BY-NC-ND 4.0"

_CARDS = (
    ModelCard(
        "uni",
        "UNI (Mahmood Lab): ViT-L/16, 1024-d",
        "MahmoodLab/UNI",
        _LARGE_16,
        licence=_NC_ND,
        gated=True,
        pairings=_AT_20X_OR_256,
        fit="bilinear",
    ),
    ModelCard(
        "uni2_h",
        "UNI2-h (Mahmood Lab): ViT-H/14 with 8 registers, 1536-d",
        "MahmoodLab/UNI2-h",
        VitShape(1536, 24, 24, patch=14, mlp=8192, swiglu=True, registers=8, prefix_positions=False),
        licence=_NC_ND,
        gated=True,
        pairings=_AT_20X_OR_256,
        fit="bilinear",
        precision="bfloat16",
    ),
    ModelCard(
        "virchow",
        "Virchow (Paige): ViT-H/14, class token and mean, 2560-d",
        "paige-ai/Virchow",
        _HUGE_14,
        licence="Apache 2.0",
        gated=True,
    ),
    ModelCard(
        "virchow2",
        "Virchow2 (Paige): ViT-H/14 with 4 registers, class token and mean, 2560-d",
        "paige-ai/Virchow2",
        _HUGE_14_REGISTERS,
        licence=_NC_ND,
        gated=True,
        pairings=_FOUR_SCALES,
    ),
    ModelCard(
        "h_optimus_0",
        "H-optimus-0 (Bioptimus): ViT-g/14 with 4 registers, 1536-d",
        "bioptimus/H-optimus-0",
        _GIANT_14_REGISTERS,
        licence="Apache 2.0",
        gated=True,
        normalisation=BIOPTIMUS,
    ),
    ModelCard(
        "h_optimus_1",
        "H-optimus-1 (Bioptimus): ViT-g/14 with 4 registers, 1536-d",
        "bioptimus/H-optimus-1",
        _GIANT_14_REGISTERS,
        licence=_NC_ND,
        gated=True,
        normalisation=BIOPTIMUS,
    ),
    ModelCard(
        "gigapath",
        "Prov-GigaPath tile encoder: ViT-g/16, 1536-d",
        "prov-gigapath/prov-gigapath",
        VitShape(1536, 40, 24, patch=16, mlp=8192, swiglu=True),
        licence="Apache 2.0, with restrictions in the card",
        gated=True,
        pairings=((0.5, 256), (0.5, 224)),
        fit="crop",
    ),
    ModelCard(
        "phikon_v2",
        "Phikon-v2 (Owkin): ViT-L/16, 1024-d",
        "owkin/phikon-v2",
        _LARGE_16,
        licence="Owkin, non-commercial",
        gated=False,
        precision="float32",
        layout="dinov2",
    ),
    ModelCard(
        "midnight",
        "Midnight-12k (kaiko.ai): ViT-g/14, class token and mean, 3072-d",
        "kaiko-ai/midnight",
        VitShape(1536, 40, 24, patch=14, mlp=8192, swiglu=True, pooling="token_and_mean"),
        licence="MIT",
        gated=False,
        pairings=_FOUR_SCALES,
        normalisation=HALVES,
        fit="bilinear",
        precision="float32",
        layout="dinov2",
    ),
    ModelCard(
        "kaiko_vitl14",
        "kaiko.ai ViT-L/14 with 4 registers, 1024-d",
        "1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms",
        VitShape(1024, 24, 16, patch=14, mlp=4096, registers=4, prefix_positions=False),
        licence="kaiko.ai, non-commercial",
        gated=False,
        pairings=_AT_20X_OR_256,
        normalisation=HALVES,
        fit="bilinear",
        precision="float32",
    ),
)

#: Every card by its name.
CARDS: dict[str, ModelCard] = {card.name: card for card in _CARDS}
