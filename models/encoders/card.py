"""What is known of a published tile encoder, as data: where its weights are and how tiles are prepared for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from equipoise.models.encoders.shape import PoolerShape, ProjectionShape, VitShape

Precision = Literal["float32", "float16", "bfloat16"]
#: How a tile is resized, always with antialiasing.
Fit = Literal["bilinear", "bicubic"]
#: Allowed (um/px, tile side in px).
Pairings = tuple[tuple[float, int], ...]
#: Where the um/px come from: its authors state them, name a magnification, or neither and others agree on them.
Basis = Literal["stated", "magnification", "convention"]
#: Names in a weights file: timm's, those of transformers (``ViTModel``, ``Dinov2Model``, with registers or not; of its
#: ``CLIPVisionModel``), those of the DINOv2 training code, or of torchscale's BEiT-3.
Layout = Literal["timm", "transformers", "clip", "dinov2", "beit3"]
#: How position embeddings of another grid are interpolated: as timm does it (bicubic, antialiased), as transformers
#: does it (bicubic), or as the DINOv2 code does it (bicubic, by a factor with 0.1 patches added).
Regrid = Literal["timm", "transformers", "dinov2"]

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ModelCard:
    """One encoder whose weights live on the Hugging Face hub.

    Attributes
    ----------
    name, line
        Name in a study, and what it is in one line.
    hub, file, sha256
        ``organisation/model``, the file in it that holds the weights, and the SHA-256 of that file: checked before
        the file is read. ``None``: no digest is known.
    shape
        Dimensions of its vision transformer.
    licence, gated
        Licence of the weights as the card names it; whether terms have to be accepted first.
    pairings, basis
        Resolutions and tile sizes it is meant for, and who says so.
    normalisation
        Mean and standard deviation per channel of pixels between 0 and 1.
    fit, crop_from
        How tiles of another side reach the input size. With ``crop_from``, every tile is resized to that side first
        and its centre is cut out, so that its border is never seen.
    precision
        Of matrix products on a GPU.
    head
        What follows the transformer, if anything.
    layout, regrid
        Names in the weights file; how position embeddings of another grid are interpolated, ``None``: an error.
    nested
        Keys that lead to the tensors in a file of dictionaries.
    renames
        Prefixes of names in the file and what stands for them; the first that fits counts.
    drops
        Prefixes of names that belong to other parts (a text tower, a training head). Every other name must fit.
    """

    name: str
    line: str
    hub: str
    shape: VitShape
    licence: str
    gated: bool
    file: str = "model.safetensors"
    sha256: str | None = None
    pairings: Pairings = ((0.5, 224),)
    basis: Basis = "convention"
    normalisation: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    fit: Fit = "bicubic"
    crop_from: int | None = None
    precision: Precision = "float16"
    head: ProjectionShape | PoolerShape | None = None
    layout: Layout = "timm"
    regrid: Regrid | None = None
    nested: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    drops: tuple[str, ...] = ()

    #: Where a study sets its parameters.
    section: ClassVar[str] = "encoder_params"
    #: Read from a file, unknown keys are refused.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"a SHA-256 has 64 hexadecimal digits, not {self.sha256!r}")
        if min(side for _, side in self.pairings) < 1 or min(mpp for mpp, _ in self.pairings) <= 0:
            raise ValueError(f"pairings are um/px and px, not {self.pairings}")
        if self.crop_from is not None and self.crop_from < self.shape.image:
            raise ValueError(f"an input of {self.shape.image} px cannot be cut out of {self.crop_from} px")

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.head.dim if self.head is not None else self.shape.dim
