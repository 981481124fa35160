"""Hidden states of a slide encoder for one patient's tiles, as they are stored, and prototypes of tiles.

Prototypes: tiles are grouped by their features with k-means (greedy k-means++ start, Arthur and Vassilvitskii 2007;
Lloyd's iterations), as MMP (Song et al., arXiv 2407.00224) does with a mixture, and every hidden state is averaged over
each group. The encoder itself sees all tiles.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.models.slide_encoders.hidden_states import HiddenStates
from equipoise.models.slide_encoders.protocol import SlideEncoder, SlideTiles

_ITERATIONS = 25
_SEED = 0


def encode_states(
    encoder: SlideEncoder,
    kept: HiddenStates,
    bag: NDArray[np.float16],
    corners: NDArray[np.float32],
    extent_um: float,
) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
    """The states of one patient.

    Parameters
    ----------
    encoder
        The slide encoder.
    kept
        Which states.
    bag, corners
        Tile features ``[N, D]`` with N > 0, and top-left corners of the tiles ``[N, 2]`` in um.
    extent_um
        Side of a tile in um.

    Returns
    -------
    states, counts
        float16 ``[T, S W]``, the S states of each token side by side: first tokens of the slide as a whole, then
        tiles or prototypes; int32 ``[T]`` tiles behind each token, 1 for those of the slide as a whole.

    Raises
    ------
    ValueError
        For other shapes, or numbers beyond float16.
    """
    device = encoder.device
    features = torch.from_numpy(np.array(bag))  # a copy: stores are mapped read-only
    with torch.inference_mode():
        tiles = SlideTiles(
            features[None].to(device),
            torch.ones(1, len(bag), dtype=torch.bool, device=device),
            torch.from_numpy(np.array(corners))[None].to(device),
            torch.tensor([extent_um], dtype=torch.float32, device=device),
        )
        groups = None if kept.prototypes is None else group_tiles(features, kept.prototypes)
        state = encoder.stem(tiles)
        wanted, parts = kept.stages(encoder.stages), []
        for at in range(max(wanted) + 1):
            if at:
                state = encoder.run_stage(at - 1, state)
            if at in wanted:
                tokens = state.tokens[0].float().cpu()
                if groups is not None:
                    tokens = _averaged(tokens, state.prefix, groups)
                parts.append(tokens.to(torch.float16).numpy())
    stored = np.concatenate(parts, axis=1)
    if not np.isfinite(stored).all():
        raise ValueError("the slide encoder gave numbers beyond float16, or none")
    behind = np.ones(len(bag), np.int64) if groups is None else np.bincount(groups.numpy())
    return stored, np.concatenate([np.ones(state.prefix, np.int64), behind]).astype(np.int32)


def group_tiles(features_ND: Tensor, count: int) -> Tensor:
    """k-means of tiles on standardised features: ``[N]`` numbers of their groups, of which none is empty.

    Parameters
    ----------
    features_ND
        Tile features.
    count
        Groups at most; with as many tiles or fewer each is a group of its own.
    """
    n = len(features_ND)
    if n <= count:
        return torch.arange(n)
    x = features_ND.float()
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    squares = x.square().sum(1)
    centres = x[_first_centres(x, count)]
    group = torch.full((n,), -1)
    for _ in range(_ITERATIONS):
        nearest = (centres.square().sum(1) - 2 * x @ centres.T).argmin(1)
        if torch.equal(nearest, group):
            break
        group = nearest
        sizes = torch.bincount(group, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, group, x)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
        # A group without tiles starts again at the tile that is farthest from its centre.
        for empty in (sizes == 0).nonzero()[:, 0].tolist():
            apart = squares - 2 * (x * centres[group]).sum(1) + centres[group].square().sum(1)
            centres[empty] = x[int(apart.argmax())]
    return torch.unique(group, return_inverse=True)[1]


def _first_centres(x_ND: Tensor, count: int) -> Tensor:
    """k-means++: a random tile, then tiles with a chance in proportion to their squared distance from the chosen.

    Of a few such tiles the one is taken that leaves the smallest sum of squares (the greedy variant).
    """
    rng = np.random.default_rng([_SEED, *x_ND.shape])
    chosen, tries = [int(rng.integers(len(x_ND)))], 2 + int(np.log(count))
    squares = x_ND.square().sum(1)
    distance = (x_ND - x_ND[chosen[0]]).square().sum(1)
    while len(chosen) < count and float(distance.sum()) > 0:
        cumulated = distance.double().cumsum(0).numpy()
        drawn = np.searchsorted(cumulated, rng.uniform(size=tries) * cumulated[-1], side="right")
        drawn = drawn.clip(max=len(x_ND) - 1)
        apart = squares + squares[drawn][:, None] - 2 * x_ND[drawn] @ x_ND.T
        apart = torch.minimum(distance, apart.clamp(min=0))
        best = int(apart.sum(1).argmin())
        chosen.append(int(drawn[best]))
        distance = apart[best]
        distance[drawn[best]] = 0
    return torch.tensor(chosen + chosen[-1:] * (count - len(chosen)))


def _averaged(tokens_TW: Tensor, prefix: int, groups_N: Tensor) -> Tensor:
    tiles = tokens_TW[prefix:]
    sizes = torch.bincount(groups_N)
    sums = tiles.new_zeros(len(sizes), tiles.shape[1]).index_add_(0, groups_N, tiles)
    return torch.cat([tokens_TW[:prefix], sums / sizes[:, None]])
