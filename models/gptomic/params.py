"""Parameters of stage 1: how cells are mixed, and the network that smooths vectors. Light: pydantic only."""

from typing import Annotated, Literal

from pydantic import Field

from equipoise.models.params import StrictParams

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class MixupParams(StrictParams):
    """How cells become the samples that an adapter is trained on."""

    mixup: Literal["dirichlet", "two_cells", "none"] = "dirichlet"
    """``two_cells``: two cells, their weights λ and 1 − λ with λ uniform on [0, 1], as published. ``dirichlet``: k
    cells, their weights from a symmetric Dirichlet distribution; k and the concentration are drawn for every sample.
    ``none``: single cells."""
    cells: tuple[Count, ...] = Field(default=(2, 5, 20, 100), min_length=1)
    """Numbers k of cells (``dirichlet``)."""
    concentrations: tuple[Positive, ...] = Field(default=(0.3, 1.0, 5.0), min_length=1)
    """Concentrations of the Dirichlet distribution: small ones let few cells prevail (``dirichlet``)."""
    draw: Literal["types", "cells"] = "types"
    """``types``: every cell type equally often, then one of its cells; ``cells``: every cell equally often, so that a
    type which is rare in the reference is rare in the samples."""
    space: Literal["linear", "log"] = "linear"
    """Where values are averaged: on the linear scale, as tissue does, or as ln(1 + x), for comparison."""
    samples: Count = 8192
    """Samples, drawn and encoded once."""


class AdapterParams(MixupParams):
    """The network MLP-A and its training."""

    layers: Count = 3
    """Layers of MLP-A."""
    dim: Count = 128
    """Width of its layers and of their output."""
    keep: bool = False
    """The encoder's own vectors stay, scaled, and the adapted ones follow them."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropout behind every layer."""
    batch_norm: bool = False
    """Batch normalisation in every layer."""
    bottleneck: Literal["none", "variational"] = "none"
    """``variational``: the last layer gives mean and log variance of a normal distribution; the classifier sees draws
    of it in training, and adapted vectors are its mean (Alemi et al., ICLR 2017: the encoder half of a VAE under a
    supervised loss)."""
    bottleneck_weight: Positive = 1e-3
    """Weight of the Kullback-Leibler divergence from the standard normal distribution (``variational``)."""
    loss: Literal["mse", "cross_entropy"] = "mse"
    """Of predicted against true fractions of cell types."""
    epochs: Count = 12
    lr: Positive = 1e-3
    """Learning rate of Adam."""
    batch: Annotated[int, Field(ge=2)] = 128
    weight_decay: float = Field(default=0.0, ge=0)
