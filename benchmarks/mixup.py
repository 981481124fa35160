"""Stage 1 of Path-GPTOmic on real cells: which mixtures, and which regulariser, teach an adapter to read bulk RNA.

Cells: scanpy's packaged ``pbmc68k_reduced`` (10x Genomics, 700 cells, 765 genes, 10 cell types), brought back to a
linear scale from ``.raw``. No pretrained encoder is involved: 50 principal components of ln(1 + x), fitted on the
training cells, stand in for a frozen one, so that directions count and sizes do not. Five random splits, 30 % of the
cells of every type held out. An adapter (MLP-A, 3 x 128) is trained on 8,192 samples of training cells, encoded once,
and predicts the composition of 1,000 pseudo-bulk samples of held-out cells, whose compositions are drawn evenly from
all possible ones.

``none_r``, ``two_cell_r``, ``dirichlet_r``: correlation of predicted and true fractions over samples and types in
pseudo-bulk of 100 cells, mean over splits, for single cells, two cells with λ uniform on [0, 1] (as published) and
Dirichlet mixtures of 2 to 100 cells; all three draw types equally often, average on the linear scale and minimise
the squared error. ``type_r`` is the mean of the types' own correlations, ``tv`` the total variation. ``against_none``
and ``against_dirichlet`` of a row: mean difference of r with its 95 % interval over the splits (corrected for their
overlap: Nadeau and Bengio, 2003).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import t as student

from equipoise.datasets.omics.single_cell import SingleCells, hold_out, pseudo_bulk, read_single_cells
from equipoise.models.gptomic.mixup import mix, mixed_labels, mixture_weights, recovery
from equipoise.models.gptomic.params import AdapterParams, MixupParams
from equipoise.models.gptomic.smoothing import train_adapter
from equipoise.models.rna.entries import PcaParams
from equipoise.models.rna.pca import PcaEncoder, fit_components
from equipoise.models.rna.protocol import RnaEncoder

RESULTS = Path(__file__).parent / "results" / "mixup.json"
HELD_OUT, COMPONENTS, PSEUDO_BULK = 0.3, 50, 1000
#: Cells in a pseudo-bulk sample; the first is that of the keys.
SIZES = (100, 10, 1)
NONE, TWO, DIRICHLET = {"mixup": "none"}, {"mixup": "two_cells"}, {"mixup": "dirichlet"}
REGULARISERS: dict[str, dict[str, Any]] = {
    "dropout 0.25": {"dropout": 0.25},
    "batch norm": {"batch_norm": True},
    "variational bottleneck": {"bottleneck": "variational"},
}
METHODS: dict[str, dict[str, Any]] = {
    "none": NONE,
    "two cells": TWO,
    "Dirichlet": DIRICHLET,
    **{f"none, {name}": NONE | settings for name, settings in REGULARISERS.items()},
    **{f"Dirichlet, {name}": DIRICHLET | settings for name, settings in REGULARISERS.items()},
    "none, cross-entropy": NONE | {"loss": "cross_entropy"},
    "two cells, cross-entropy": TWO | {"loss": "cross_entropy"},
    "Dirichlet, cross-entropy": DIRICHLET | {"loss": "cross_entropy"},
    "two cells, mixed as logarithms": TWO | {"space": "log"},
    "Dirichlet, mixed as logarithms": DIRICHLET | {"space": "log"},
    "two cells, cells equally often": TWO | {"draw": "cells"},
    "Dirichlet, cells equally often": DIRICHLET | {"draw": "cells"},
}
KEYS = {"none_r": "none", "two_cell_r": "two cells", "dirichlet_r": "Dirichlet"}


def packaged_cells() -> SingleCells:
    """The reference inside scanpy, linear, every cell with the same total."""
    path = Path(str(files("scanpy") / "datasets" / "10x_pbmc68k_reduced.h5ad"))
    return read_single_cells(path, "bulk_labels", kind="log", layer="raw").with_equal_totals()


def components_of(train: SingleCells, folder: Path) -> PcaEncoder:
    """The stand-in for a frozen encoder."""
    values = train.values.toarray()
    fit_components(values, train.genes, kind="tpm", components=COMPONENTS).save(folder)
    return PcaEncoder(PcaParams(folder=str(folder)))


class Encoded(NamedTuple):
    """Vectors of samples and their fractions of cell types."""

    vectors: np.ndarray
    fractions: np.ndarray


@dataclass
class Split:
    """One split with its encoder; mixtures are encoded once for all methods that train on them."""

    seed: int
    train: SingleCells
    encoder: RnaEncoder
    tests: dict[int, Encoded]
    mixtures: dict[str, Encoded]

    @classmethod
    def of(cls, cells: SingleCells, seed: int, folder: Path, encoder: RnaEncoder | None = None) -> Split:
        """Split, fit the components if no encoder is given, and encode the pseudo-bulk samples."""
        train, held_out = hold_out(cells, HELD_OUT, seed, least=2)
        encoder = encoder or components_of(train, folder / f"components-{seed}")
        tests = {}
        for size in SIZES:
            values, fractions = pseudo_bulk(held_out, PSEUDO_BULK, seed=seed, size=size)
            tests[size] = Encoded(encoder.encode(values, cells.genes, kind="tpm", seed=0), fractions)
        return cls(seed, train, encoder, tests, {})

    def encoded(self, params: AdapterParams) -> Encoded:
        """The samples that these parameters ask for."""
        drawn_by = {name: getattr(params, name) for name in MixupParams.model_fields}
        key = json.dumps(drawn_by, sort_keys=True)
        if key not in self.mixtures:
            weights = mixture_weights(self.train.labels, params, self.seed)
            values = mix(self.train.values, weights, params.space)
            vectors = self.encoder.encode(values, self.train.genes, kind="tpm", seed=0)
            targets = mixed_labels(self.train.labels, weights, len(self.train.types))
            self.mixtures[key] = Encoded(vectors, targets)
        return self.mixtures[key]

    def scores(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """Train an adapter and predict the held-out samples."""
        params = AdapterParams.model_validate(settings)
        samples = self.encoded(params)
        adapter = train_adapter(
            *samples,
            self.train.types,
            params,
            encoder=self.encoder.name,
            encoder_fingerprint=self.encoder.fingerprint,
            seed=self.seed,
        )
        row = {}
        for size, test in self.tests.items():
            found = recovery(adapter.fractions(test.vectors), test.fractions)
            row |= {f"r_{size}": found.r, f"tv_{size}": found.total_variation}
            if size == SIZES[0]:
                row["type_r"] = found.type_r
        return row


def interval(differences: np.ndarray) -> dict[str, float]:
    """Mean and 95 % interval of paired differences over overlapping random splits (Nadeau and Bengio, 2003)."""
    n = len(differences)
    correction = 1 / n + HELD_OUT / (1 - HELD_OUT)
    half = student.ppf(0.975, n - 1) * np.sqrt(correction * differences.var(ddof=1))
    mean = float(differences.mean())
    return {"difference": mean, "low": mean - float(half), "high": mean + float(half)}


def table_of(splits: Sequence[Split], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Method → mean scores, and its paired differences of r."""
    scores = {name: [split.scores(METHODS[name]) for split in splits] for name in methods}
    column = f"r_{SIZES[0]}"
    by_split = {name: np.array([row[column] for row in rows]) for name, rows in scores.items()}
    table = {}
    for name, rows in scores.items():
        row: dict[str, Any] = {key: float(np.mean([r[key] for r in rows])) for key in rows[0]}
        row["r_of_splits"] = by_split[name].tolist()
        if len(splits) > 1:
            others = [other for other in ("none", "Dirichlet") if other != name]
            row |= {f"against_{o.lower()}": interval(by_split[name] - by_split[o]) for o in others}
        table[name] = row
    return table


def show(table: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Print a table."""
    print(f"\n{title}\n{'':34} r of 100 / 10 / 1 cells   r by type  TV    r against none [95 %]")
    for name, row in table.items():
        apart = row.get("against_none")
        text = f"{apart['difference']:+.3f} [{apart['low']:+.3f}, {apart['high']:+.3f}]" if apart else ""
        values = "  ".join(f"{row[f'r_{size}']:.3f}" for size in SIZES)
        print(f"{name:34} {values}      {row['type_r']:.3f}     {row[f'tv_{SIZES[0]}']:.3f}  {text}")


def rounded(value: Any) -> Any:
    """Four decimals, wherever a number stands."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """All methods on all splits, the tables, and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="splits; nothing is kept with fewer than five")
    parser.add_argument("--methods", nargs="*", choices=tuple(METHODS), help="some of the rows [all]")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    load, started = os.getloadavg()[0], time.process_time()
    cells = packaged_cells()
    methods = tuple(dict.fromkeys(("none", "two cells", "Dirichlet", *(asked.methods or METHODS))))
    with tempfile.TemporaryDirectory() as folder:
        splits = [Split.of(cells, seed, Path(folder)) for seed in range(asked.seeds)]
        table = table_of(splits, methods)
    show(table, f"{COMPONENTS} principal components in place of a pretrained encoder")
    record = {key: table[name][f"r_{SIZES[0]}"] for key, name in KEYS.items()}
    record |= {"ordered": record["none_r"] < record["two_cell_r"] < record["dirichlet_r"]}
    record |= {"seeds": asked.seeds, "methods": table}
    record |= {"cpu_seconds": round(time.process_time() - started, 1), "load_before": round(load, 2)}
    record |= {"scanpy": version("scanpy"), "torch": version("torch"), "numpy": version("numpy")}
    record = rounded(record)
    if asked.seeds >= 5 and not asked.methods:
        RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
