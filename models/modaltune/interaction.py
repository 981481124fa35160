"""Attention between modal tokens and the tiles of a frozen slide encoder.

Source: ModalTune (arXiv 2503.17564): a bottleneck of 192, 12 heads, pre-norm, no dropout. The injector adds to the
tiles what the modal tokens say, scaled by a vector that starts at 0: training starts from the slide encoder as it is.
The extractor adds to the modal tokens what the tiles say, and a small perceptron. The published code adds the residual
twice, ``x + gamma * (x + CA)`` and ``2 c + CA``; ``doubled`` reproduces it.

Shapes: B cases, T tiles, C modal tokens, W width of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attend(nn.Module):
    """LayerNorm on both inputs → Linear to the bottleneck → attention → Linear back.

    Parameters
    ----------
    width
        Width of the tokens.
    bottleneck, heads
        Width inside the attention, and its heads.
    """

    def __init__(self, width: int, bottleneck: int, heads: int) -> None:
        super().__init__()
        self.query_norm, self.key_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.attention = nn.MultiheadAttention(bottleneck, heads, kdim=width, vdim=width, batch_first=True)
        self.up = nn.Linear(bottleneck, width)

    def forward(self, query_BQW: Tensor, key_BKW: Tensor, hidden_BK: Tensor | None = None) -> Tensor:
        """``[B, Q, W]``; keys that are ``hidden`` are looked at by none, or numbers are added to their scores."""
        key = self.key_norm(key_BKW)
        mixed, _ = self.attention(
            self.down(self.query_norm(query_BQW)), key, key, key_padding_mask=hidden_BK, need_weights=False
        )
        return self.up(mixed)


class SelfAttend(nn.Module):
    """Attention of modal tokens among themselves, pre-norm, with its residual; places enter queries and keys.

    Parameters
    ----------
    width, bottleneck, heads
        As of :class:`Attend`.
    """

    def __init__(self, width: int, bottleneck: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.attention = nn.MultiheadAttention(bottleneck, heads, kdim=width, vdim=width, batch_first=True)
        self.up = nn.Linear(bottleneck, width)

    def forward(self, c_BCW: Tensor, place_CW: Tensor, hidden_BC: Tensor | None = None) -> Tensor:
        """``[B, C, W]``."""
        c = self.norm(c_BCW)
        placed = c + place_CW
        mixed, _ = self.attention(
            self.down(placed), placed, c, key_padding_mask=hidden_BC, need_weights=False
        )
        return c_BCW + self.up(mixed)


class Injector(nn.Module):
    """``x + gamma * CA(x, c)``: modal tokens change the tiles.

    Parameters
    ----------
    width, bottleneck, heads
        As of :class:`Attend`.
    doubled
        ``x + gamma * (x + CA)``, as the published code has it.
    """

    def __init__(self, width: int, bottleneck: int, heads: int, *, doubled: bool = False) -> None:
        super().__init__()
        self.attend = Attend(width, bottleneck, heads)
        self.gamma = nn.Parameter(torch.zeros(width))
        self.doubled = doubled

    def forward(
        self, x_BTW: Tensor, c_BCW: Tensor, place_CW: Tensor, hidden_BC: Tensor | None = None
    ) -> Tensor:
        """``[B, T, W]``."""
        said = self.attend(x_BTW, c_BCW + place_CW, hidden_BC)
        return x_BTW + self.gamma * (x_BTW + said if self.doubled else said)


class Extractor(nn.Module):
    """``c + CA(c, x)``, then ``c + MLP(c)``: tiles change the modal tokens.

    Parameters
    ----------
    width, bottleneck, heads
        As of :class:`Attend`; the perceptron has the bottleneck's width.
    drop_path
        How often a training case goes without the perceptron.
    slides
        Whether there are tiles; without them the perceptron is left.
    doubled
        ``2 c + CA``, as the published code has it.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        heads: int,
        *,
        drop_path: float = 0.0,
        slides: bool = True,
        doubled: bool = False,
    ) -> None:
        super().__init__()
        self.attend = Attend(width, bottleneck, heads) if slides else None
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, bottleneck), nn.ReLU(), nn.Linear(bottleneck, width)
        )
        self.drop_path, self.doubled = drop_path, doubled

    def forward(
        self,
        c_BCW: Tensor,
        place_CW: Tensor,
        x_BTW: Tensor | None = None,
        seen_BT: Tensor | None = None,
        counts_BT: Tensor | None = None,
    ) -> Tensor:
        """``[B, C, W]``; a case of which no tile is ``seen`` gets the perceptron alone.

        A tile with a count n is looked at as n equal tiles would be: the logarithm of n is added to its score.
        """
        if self.attend is not None and x_BTW is not None and seen_BT is not None:
            any_B = seen_BT.any(dim=1)
            hidden = ~(seen_BT | ~any_B[:, None])  # a softmax over nothing would be NaN
            if counts_BT is not None:
                hidden = counts_BT.clamp(min=1).log().masked_fill(hidden, -torch.inf)
            said = self.attend(c_BCW + place_CW, x_BTW, hidden)
            changed = c_BCW + (c_BCW + said if self.doubled else said)
            c_BCW = torch.where(any_B[:, None, None], changed, c_BCW)
        return c_BCW + self._kept(self.perceptron(c_BCW))

    def _kept(self, change_BCW: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return change_BCW
        keep = 1 - self.drop_path
        return change_BCW * (change_BCW.new_empty(len(change_BCW), 1, 1).bernoulli_(keep) / keep)


class Interaction(nn.Module):
    """One block: self-attention of modal tokens, injector, the frozen stages, extractors.

    Parameters
    ----------
    width, bottleneck, heads, drop_path, slides, doubled
        As of its parts.
    attends
        Whether modal tokens look at each other first; they do not in the first block.
    injects
        Whether tiles are changed.
    extractors
        How many follow the stages.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        heads: int,
        *,
        attends: bool,
        injects: bool,
        extractors: int,
        drop_path: float = 0.0,
        slides: bool = True,
        doubled: bool = False,
    ) -> None:
        super().__init__()
        self.attention = SelfAttend(width, bottleneck, heads) if attends else None
        self.injector = Injector(width, bottleneck, heads, doubled=doubled) if injects and slides else None
        self.extractors = nn.ModuleList(
            Extractor(width, bottleneck, heads, drop_path=drop_path, slides=slides, doubled=doubled)
            for _ in range(extractors)
        )
