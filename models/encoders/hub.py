"""Encoders whose weights live on the Hugging Face hub: one transformer, one way to load, a card for each."""

from __future__ import annotations

from dataclasses import asdict

import torch

from equipoise.models.encoders.dinov2_names import from_dinov2
from equipoise.models.encoders.entries import HubParams
from equipoise.models.encoders.torch_encoder import Blueprint, PlannedEncoder, Preparation
from equipoise.models.encoders.vit import VisionTransformer
from equipoise.models.encoders.weights import find_hub_weights, read_weights


class HubEncoder(PlannedEncoder):
    """The encoder of a card, with weights from this machine.

    Parameters
    ----------
    params
        Parameters of one encoder; their class names the card.
    """

    @staticmethod
    def blueprint(params: HubParams) -> Blueprint:
        """The card's transformer and the file of its weights."""
        card = params.card
        path = find_hub_weights(card, params.weights)
        state = read_weights(path)
        if card.layout == "dinov2":
            state = from_dinov2(state, card.shape)
        with torch.device("meta"):  # no memory and no time for numbers that are replaced at once
            network = VisionTransformer(card.shape)
        mean, std = card.normalisation
        return Blueprint(
            network,
            state,
            str(path),
            Preparation(card.shape.image, mean, std, card.fit),
            card.dim,
            {"encoder": card.name, "shape": asdict(card.shape)},
            precision=card.precision if params.precision == "auto" else params.precision,
            on_cpu="float32" if params.precision == "auto" else params.precision,
            batch_size=params.batch_size,
            device=params.device,
        )
