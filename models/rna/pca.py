"""Principal components of a reference: the linear baseline of pretrained RNA encoders.

A profile is scaled to one total over the reference's genes, brought to ln(1 + x), centred at the reference's means and
projected onto its principal axes. A study's own components, fitted on the training patients of each fold, are
``tables.rna.components``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.models.rna.entries import PcaParams
from equipoise.models.rna.folders import (
    CONFIG,
    GENES,
    WEIGHTS,
    existing_folder,
    fingerprint,
    read_config,
    read_genes,
    require_tensors,
    write_folder,
)
from equipoise.models.rna.protocol import Identity, check_profiles

#: What every profile sums to, over the genes of the reference that were measured.
TOTAL = 10_000.0
#: Raise with every change of the numbers.
_FORMAT = "components of ln(1 + x), version 1"


@dataclass(frozen=True)
class Components:
    """What is fitted on a reference.

    Attributes
    ----------
    genes
        ``[G]`` names.
    centre
        ``[G]`` means of ln(1 + x).
    axes
        ``[G, D]`` orthonormal directions, the one of largest variance first.
    unit
        Standard deviation of the first score; all scores are divided by it, so that later ones stay small.
    """

    genes: tuple[str, ...]
    centre: NDArray[np.float32]
    axes: NDArray[np.float32]
    unit: float

    def save(self, folder: str | Path) -> None:
        """Write the folder that :class:`PcaEncoder` reads.

        Raises
        ------
        FileExistsError
            If there is such a folder already.
        """
        import torch

        config = {"format": _FORMAT, "total": TOTAL, "unit": self.unit}
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in ("centre", "axes")}
        write_folder(folder, config, self.genes, tensors)


def fit_components(
    values: NDArray[np.float32], genes: Sequence[str], *, kind: str, components: int
) -> Components:
    """Fit on samples of a reference.

    Parameters
    ----------
    values, genes, kind
        ``[N, G]`` profiles without gaps, as of :meth:`PcaEncoder.encode`.
    components
        Number D of components, below N and at most G.

    Raises
    ------
    ValueError
        If there are too few samples, gaps, or profiles that an encoder would refuse.
    """
    check_profiles("pca", PcaParams.accepts, values, genes, kind)
    if not 0 < components <= min(len(values) - 1, len(genes)):
        raise ValueError(f"{components} components of {len(values)} samples and {len(genes)} genes")
    if np.isnan(values).any():
        raise ValueError("the reference has gaps\nleave genes out that were not measured in all samples")
    x_NG = _log_profiles(values, kind)
    centre = x_NG.mean(axis=0)
    _, spread, axes = np.linalg.svd(x_NG - centre, full_matrices=False)
    axes_GD = axes[:components].T
    axes_GD *= np.sign(
        axes_GD[np.abs(axes_GD).argmax(axis=0), np.arange(components)]
    )  # the sign is arbitrary
    unit = float(spread[0] / np.sqrt(len(values) - 1)) or 1.0
    return Components(
        tuple(genes),
        centre.astype(np.float32),
        np.ascontiguousarray(axes_GD, np.float32),
        unit,
    )


class PcaEncoder:
    """Scores on principal components of a reference.

    A gene that a sample lacks counts as average.

    Parameters
    ----------
    params
        Which folder.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is missing or is not of such an encoder.
    """

    name = "pca"
    accepts = PcaParams.accepts

    def __init__(self, params: PcaParams) -> None:
        from safetensors.torch import load_file

        self.dim, self.fingerprint = self._identity(params)
        folder = existing_folder(self.name, params.folder)
        config, genes = read_config(folder / CONFIG), read_genes(folder / GENES)
        state = load_file(folder / WEIGHTS)
        shapes = {"centre": [len(genes)], "axes": [len(genes), self.dim]}
        require_tensors(shapes, state, str(folder / WEIGHTS))
        tensors = {name: tensor.numpy() for name, tensor in state.items()}
        self._parts = Components(genes, tensors["centre"], tensors["axes"], float(config["unit"]))

    @classmethod
    def identify(cls, params: PcaParams) -> Identity:
        """See :class:`~equipoise.models.rna.protocol.Identity`."""
        return Identity(*cls._identity(params))

    @classmethod
    def _identity(cls, params: PcaParams) -> tuple[int, str]:
        from safetensors import safe_open

        folder = existing_folder(cls.name, params.folder)
        config = read_config(folder / CONFIG)
        if (config.get("format"), config.get("total")) != (_FORMAT, TOTAL):
            raise ValueError(
                f"{folder / CONFIG}: not an encoder 'pca' of this version\nname the folder that Components.save wrote"
            )
        with safe_open(folder / WEIGHTS, "np") as file:
            shape = file.get_slice("axes").get_shape() if "axes" in file.keys() else []  # noqa: SIM118
        if len(shape) != 2:
            raise ValueError(f"{folder / WEIGHTS}: has no axes [G, D]\nname the folder of another encoder")
        files = [folder / file for file in (CONFIG, GENES, WEIGHTS)]
        return int(shape[1]), fingerprint({"format": _FORMAT}, files)

    def knows(self, genes: Sequence[str]) -> NDArray[np.bool_]:
        """Genes of the reference."""
        reference = set(self._parts.genes)
        return np.array([gene in reference for gene in genes], bool)

    def encode(
        self, values: NDArray[np.float32], genes: Sequence[str], *, kind: str, seed: int = 0
    ) -> NDArray[np.float32]:
        """See :class:`~equipoise.models.rna.protocol.RnaEncoder`; nothing is random."""
        check_profiles(self.name, self.accepts, values, genes, kind)
        position = {gene: i for i, gene in enumerate(genes)}
        index = np.array([position.get(gene, -1) for gene in self._parts.genes])
        if (index < 0).all():
            raise ValueError(
                f"none of the {len(genes)} genes is in the reference: {', '.join(genes[:3])} here, "
                f"{', '.join(self._parts.genes[:3])} there\nuse one naming of genes"
            )
        known = np.full((len(values), len(index)), np.nan)
        known[:, index >= 0] = values[:, index[index >= 0]]
        x_NG = _log_profiles(known, kind)
        empty = np.nansum(np.nan_to_num(known), axis=1) == 0
        scores = np.nan_to_num(x_NG - self._parts.centre) @ self._parts.axes / self._parts.unit
        scores[empty] = np.nan
        return scores.astype(np.float32)


def _log_profiles(values: NDArray[np.floating], kind: str) -> NDArray[np.float64]:
    """ln(1 + x) of profiles scaled to :data:`TOTAL`; gaps stay gaps, profiles without expression are 0."""
    linear = np.asarray(values, np.float64)
    linear = np.expm1(linear) if kind == "log" else linear
    total = np.nansum(linear, axis=1, keepdims=True)
    return np.log1p(linear * (TOTAL / np.where(total > 0, total, 1.0)))
