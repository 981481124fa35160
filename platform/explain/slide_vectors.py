"""Models that read one vector per slide: the way back through the slide encoder, to the tiles that it read.

The slide encoder runs again, with the model behind it, on the tiles of one slide; vectors of the patient's other slides
stay as they are stored. What the tiles of a slide contribute is thereby explained for that slide alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from equipoise.models.batch import CaseBatch
from equipoise.models.modaltune.frozen import tiles_of
from equipoise.models.slide_encoders.protocol import SlideEncoder, run_encoder
from equipoise.platform.explain.explained import TrainedModel
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case, SlideFeatures


class ThroughSlideEncoder(nn.Module):
    """Tiles of one slide → slide encoder → its vector beside those of the other slides → model.

    Parameters
    ----------
    model
        Reads vectors of slides.
    encoder
        What made them. It is no module of this one: its weights were not learned here, and a re-initialised copy of
        the model keeps them.
    vectors
        float32 ``[S, E]`` of the patient's slides.
    at
        Which of them is explained.
    """

    vectors: Tensor

    def __init__(self, model: nn.Module, encoder: SlideEncoder, vectors: Tensor, at: int) -> None:
        super().__init__()
        self.model = model
        self.at = at
        self.register_buffer("vectors", vectors, persistent=False)
        self._encoder = (encoder,)
        for part in (encoder, getattr(encoder, "network", None)):
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)

    def forward(self, batch: CaseBatch) -> dict[str, Tensor]:
        """Outputs per task; ``batch`` holds tiles of the slide."""
        (encoder,) = self._encoder
        own_BE = run_encoder(encoder, tiles_of(batch)).to(self.vectors)
        count = len(batch)
        parts = [row.expand(count, -1) for row in self.vectors]
        parts[self.at] = own_BE
        bags_BSE = torch.stack(parts, dim=1)
        mask_BS = torch.ones(bags_BSE.shape[:2], dtype=torch.bool, device=bags_BSE.device)
        where_BS2 = torch.zeros(*bags_BSE.shape[:2], 2, dtype=torch.int32, device=bags_BSE.device)
        read = dataclasses.replace(
            batch,
            bags=bags_BSE,
            mask=mask_BS,
            coords=where_BS2,
            corners=None,
            extent=None,
            padded=None,
            tileless=None,
        )
        return self.model(read)


@dataclass(frozen=True)
class OfOneSlide:
    """A model behind its slide encoder, prepared to read the tiles of one slide."""

    model: nn.Module
    targets: Targets


@dataclass(frozen=True)
class SlideTilesBehind:
    """The slide encoder of a study and the tiles that it read.

    Attributes
    ----------
    encoder
        The slide encoder.
    tiles
        The store of tiles.
    """

    encoder: SlideEncoder
    tiles: SlideFeatures

    def case(self, case: Case, at: int) -> Case:
        """The patient with the tiles of one slide in place of the vectors of all."""
        slide = case.slides[at]
        bag, coords = self.tiles.read(slide)
        return replace(
            case,
            bag=bag,
            coords=coords,
            slides=(slide,),
            tiles=(len(bag),),
            mpp=(self.tiles.mpp(slide),),
            extent=self.tiles.extent,
        )

    def model(self, trained: TrainedModel, case: Case, at: int, features: int) -> TrainedModel:
        """The model behind the encoder, for one slide of this patient, whose tiles have so many features."""
        parameter = next(trained.model.parameters(), None)
        vectors = torch.from_numpy(case.bag.copy()).float()
        vectors = vectors if parameter is None else vectors.to(parameter.device)
        shape = replace(trained.targets.shape, features=features)
        whole = ThroughSlideEncoder(trained.model, self.encoder, vectors, at)
        return OfOneSlide(whole, replace(trained.targets, shape=shape))
