"""Which hidden states of a frozen slide encoder a model reads again in every epoch. Light: no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states that training never changes, so that they are computed once and stored.

    Attributes
    ----------
    encoder, params
        The slide encoder and its parameters.
    blocks, skipped
        Blocks of the model around the encoder's stages, and stages before the first of them.
    injected
        Whether the blocks change the tiles: then only the state in front of the first block is always the same.
    prototypes
        Tiles of a case are replaced by that many means of similar tiles; None: all tiles.
    """

    encoder: str
    params: Mapping[str, Any] = field(default_factory=dict)
    blocks: int = 3
    skipped: int = 0
    injected: bool = False
    prototypes: int | None = None

    def stages(self, count: int) -> tuple[int, ...]:
        """How many of the encoder's ``count`` stages have run at each state that is stored.

        Examples
        --------
        >>> HiddenStates("gigapath_slide").stages(12), HiddenStates("x", skipped=8, injected=True).stages(12)
        ((4, 8, 12), (8,))
        """
        groups = stage_groups(count, self.blocks, self.skipped)
        return (self.skipped,) if self.injected else tuple(group.stop for group in groups)


def stage_groups(stages: int, blocks: int, skipped: int = 0) -> list[range]:
    """Groups of consecutive stages behind the ``skipped`` ones, as equal as they can be, longer ones first.

    Raises
    ------
    ValueError
        If there are fewer stages than groups.
    """
    left = stages - skipped
    if left < blocks:
        raise ValueError(
            f"slide_encoder has {stages} stages, of which {max(left, 0)} are left for {blocks} blocks: "
            "choose fewer blocks, or an encoder with more stages"
        )
    ends = [skipped + -(-left * i // blocks) for i in range(blocks + 1)]
    return [range(a, b) for a, b in itertools.pairwise(ends)]
