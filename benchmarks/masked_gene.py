"""Pre-training of a small RNA encoder on hidden genes: what it learns of real cells, and what its vectors hold.

Cells: scanpy's packaged ``pbmc68k_reduced`` (10x Genomics, 700 cells, 765 genes, 10 cell types), brought back to a
linear scale from ``.raw``. In three random splits (80 % training, 10 % validation, 10 % test cells) the encoder
``masked_gene`` is trained with its default settings; 40 % of the genes of every test cell are hidden.

``loss``, ``loss_of_mean``: mean squared error of the hidden values of ln(1 + x) on test cells, of the network and of
the gene's mean among training cells; ``explained``: 1 minus their ratio, mean over splits. ``factor_explained``: the
same of a factor analysis of the training cells (the conditional mean of a normal distribution), whose number of factors
is chosen on validation cells: the linear model of this task. ``types`` and ``types_of_components``: balanced accuracy
of the types of test cells by logistic regression on the vectors, and on as many principal components.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from benchmarks.mixup import packaged_cells, rounded
from equipoise.datasets.omics.single_cell import SingleCells
from equipoise.models.rna.entries import MaskedGeneParams, PcaParams
from equipoise.models.rna.masked_gene import MaskedGeneEncoder
from equipoise.models.rna.pca import PcaEncoder, fit_components
from equipoise.models.rna.protocol import RnaEncoder
from equipoise.platform.run.rna_pretraining import pretrain_encoder, pretraining_params
from equipoise.platform.training.masked_gene_reference import (
    TEST,
    VAL,
    PretrainingParams,
    Reference,
    drawn_genes,
    prepare_reference,
)

RESULTS = Path(__file__).parent / "results" / "masked_gene.json"
FACTORS = (2, 4, 8, 12)


def factor_explained(reference: Reference, params: PretrainingParams) -> float:
    """What a factor analysis of training cells predicts of the hidden genes of test cells."""
    x = reference.rows(reference.train).astype(float)
    centre = x.mean(axis=0)
    best, result = -np.inf, float("nan")
    for factors in FACTORS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = FactorAnalysis(factors, random_state=0, max_iter=200).fit(x)
        loadings, noise = model.components_.T, model.noise_variance_
        scores = []
        for cells, key in ((reference.val, VAL), (reference.test, TEST)):
            shown = params.shown(len(reference.genes), training=False)
            errors = np.zeros(2)
            for row, genes in zip(
                reference.rows(cells) - centre, drawn_genes(reference, cells, (params.seed, key)), strict=True
            ):
                seen, hidden = genes[:shown], genes[shown:]
                weighted = loadings[seen].T / noise[seen]
                factor = np.linalg.solve(np.eye(factors) + weighted @ loadings[seen], weighted @ row[seen])
                errors += [((loadings[hidden] @ factor - row[hidden]) ** 2).sum(), (row[hidden] ** 2).sum()]
            scores.append(1 - errors[0] / errors[1])
        if scores[0] > best:
            best, result = scores[0], scores[1]
    return float(result)


def accuracy_of_types(encoder: RnaEncoder, cells: SingleCells, train: np.ndarray, test: np.ndarray) -> float:
    """Balanced accuracy of cell types by logistic regression on vectors."""
    vectors = encoder.encode(cells.values.toarray(), cells.genes, kind="tpm", seed=0)
    scaler = StandardScaler().fit(vectors[train])
    model = LogisticRegression(max_iter=2000, class_weight="balanced")
    model.fit(scaler.transform(vectors[train]), cells.labels[train])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that no test cell has
        return float(
            balanced_accuracy_score(cells.labels[test], model.predict(scaler.transform(vectors[test])))
        )


def split_row(cells: SingleCells, seed: int, folder: Path, settings: Sequence[str]) -> dict[str, Any]:
    """All figures of one split."""
    params = pretraining_params(settings, seed=seed)
    reference = prepare_reference(cells, params)
    out = folder / f"masked-{seed}"
    record = pretrain_encoder(cells, params, out).record
    masked = MaskedGeneEncoder(MaskedGeneParams(folder=str(out), device="cpu"))
    train, test = reference.train, reference.test
    values = cells.values[train].toarray()
    fit_components(values, cells.genes, kind="tpm", components=params.dim).save(folder / f"components-{seed}")
    components = PcaEncoder(PcaParams(folder=str(folder / f"components-{seed}")))
    return {
        "loss": record["test_loss"],
        "loss_of_mean": record["test_loss_of_mean"],
        "explained": record["explained"],
        "factor_explained": factor_explained(reference, params),
        "types": accuracy_of_types(masked, cells, train, test),
        "types_of_components": accuracy_of_types(components, cells, train, test),
        "epochs": record["epochs"],
        "best_epoch": record["best_epoch"],
    }


def main() -> None:
    """All splits and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="splits; nothing is kept with fewer than three")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the training")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    load, started = os.getloadavg()[0], time.process_time()
    cells = packaged_cells()
    with tempfile.TemporaryDirectory() as folder:
        rows = [split_row(cells, seed, Path(folder), asked.set) for seed in range(asked.seeds)]
    for seed, row in enumerate(rows):
        print(f"split {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    record: dict[str, Any] = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    record |= {"splits": rows, "seeds": asked.seeds}
    record |= {"cpu_seconds": round(time.process_time() - started, 1), "load_before": round(load, 2)}
    record |= {"scanpy": version("scanpy"), "torch": version("torch"), "numpy": version("numpy")}
    record = rounded(record)
    if asked.seeds >= 3 and not asked.set:
        RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
