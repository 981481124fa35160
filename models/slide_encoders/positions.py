"""Fixed position embeddings of slide encoders."""

from __future__ import annotations

import torch
from torch import Tensor

_BASE = 10000.0  # longest wavelength, in units of 2 pi tiles


def sines_and_cosines(places: Tensor, width: int) -> Tensor:
    """Embeddings of places in a plane (He et al., arXiv 2111.06377, after Vaswani et al., arXiv 1706.03762).

    Parameters
    ----------
    places
        Row and column in units of tiles: ``[B, N, 2]``.
    width
        Length of an embedding, a multiple of 4.

    Returns
    -------
    ``[B, N, width]``: sines, then cosines of the row at ``width / 4`` wavelengths, then the same of the column.
    """
    quarter = width // 4
    wave = torch.arange(quarter, device=places.device, dtype=torch.float64)
    angles = places[..., None].double() * _BASE ** (-wave / quarter)  # float32 would lose digits in row 1000
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2).float()
