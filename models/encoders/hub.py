"""Encoders whose weights live on the Hugging Face hub: one transformer, one way to load, a card for each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from equipoise.models.encoders.card import ModelCard
from equipoise.models.encoders.entries import CardFileParams, HubParams
from equipoise.models.encoders.heads import HeadedTransformer
from equipoise.models.encoders.layouts import to_card
from equipoise.models.encoders.torch_encoder import EncoderSpec, Preparation, PretrainedEncoder
from equipoise.models.encoders.vit import VisionTransformer
from equipoise.models.encoders.weights import check_file, find_hub_weights, read_weights


class HubEncoder(PretrainedEncoder):
    """The encoder of a card, with weights from this machine.

    Parameters
    ----------
    params
        Parameters of one encoder: their class names the card, or they name a file that describes it.
    """

    @staticmethod
    def spec(params: HubParams | CardFileParams) -> EncoderSpec:
        """The card's transformer and the file of its weights."""
        card = params.card
        path = find_hub_weights(card, params.weights)
        check_file(path, params.weights_sha256, card.name)
        try:
            state = to_card(read_weights(path, card.nested), card)
        except ValueError as error:
            what, _, fix = str(error).partition("\n")
            raise ValueError(
                f"{what if str(path) in what else f'{path}: {what}'}\n"
                f"{fix or 'name the published weights file of the encoder'}"
            ) from error
        with torch.device("meta"):  # no memory and no time for numbers that are replaced at once
            network = card_network(card)
        mean, std = card.normalisation
        return EncoderSpec(
            network,
            state,
            str(path),
            Preparation(card.shape.image, mean, std, card.fit, card.crop_from),
            card.dim,
            _identity(card),
            precision=card.precision if params.precision == "auto" else params.precision,
            on_cpu="float32" if params.precision == "auto" else params.precision,
            batch_size=params.batch_size,
            device=params.device,
        )


def card_network(card: ModelCard) -> nn.Module:
    """The network of a card, without its weights: images ``[B, 3, image, image]`` to ``[B, dim]``."""
    if card.head is None:
        return VisionTransformer(card.shape)
    return HeadedTransformer(card.shape, card.head)


def _identity(card: ModelCard) -> dict[str, Any]:
    identity: dict[str, Any] = {"encoder": card.name, "shape": card.shape.to_dict()}
    return identity if card.head is None else identity | {"head": asdict(card.head)}
