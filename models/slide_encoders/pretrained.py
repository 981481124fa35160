"""From a slide encoder's card to the weights of its network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from equipoise.models.encoders.weights import (
    check_file,
    digest,
    find_hub_weights,
    load_weights,
    read_weights,
    renamed,
)
from equipoise.models.slide_encoders.card import SlideCard

if TYPE_CHECKING:
    from torch import Tensor, nn


def load_published(
    network: nn.Module,
    card: SlideCard,
    weights: str | None,
    sha256: str | None,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> str:
    """Put published weights into a network, all of them and nothing else; it is frozen and in evaluation mode then.

    Parameters
    ----------
    network
        With the names that the card's ``renames`` lead to.
    card
        Of the slide encoder.
    weights
        File or folder; ``None``: what the Hugging Face cache has.
    sha256
        Digest of a file of the user's own, in place of the published one.
    rename
        Brings names that prefixes cannot tell to those of the network, after the card's ``renames`` and ``drops``.

    Returns
    -------
    SHA-256 of the weights as numbers.

    Raises
    ------
    FileNotFoundError
        If they are not on this machine, with how to get them.
    ValueError
        If they are other weights.
    """
    if weights is None and not card.hub:
        raise FileNotFoundError(
            f"the weights of slide encoder {card.name!r} are not named\n"
            f"get {card.file} as {card.source} says and write features: {{{card.section}: {{weights: PATH}}}}"
        )
    path = find_hub_weights(card, weights)
    check_file(path, sha256 or card.sha256, card.name, card.section)
    state = rename(renamed(read_weights(path, card.nested), card.renames, card.drops))
    load_weights(network, state, str(path))
    network.eval().requires_grad_(False)
    return digest(network)
