"""GeneICL: a pretrained transformer that predicts from labelled RNA profiles in its context, without training.

arXiv 2610.08694; the package ``geneicl`` (MIT, an extra) holds the weights. One forward pass per 256 patients. Support
and queries need the same genes, which it standardises and reduces itself. Survival is one step of boosting on Cox's
martingale residuals. The default checkpoint and no ensemble, whose benefit its authors find small and inconsistent.
"""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import ArrayLike

from equipoise.models.batch import TaskHead
from equipoise.models.probes.likelihoods import Array

#: Labelled patients (of each class, or events) below which it is not asked.
FEWEST = 3


def is_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec("geneicl") is not None


def can_predict(head: TaskHead, target: ArrayLike) -> bool:
    """Whether it has such a task: at most 10 classes, log risks, numbers, and a few labels of each class or event."""
    values = np.asarray(target)
    if head.kind == "survival":
        return head.edges is None and len(values) > 0 and values[:, 1].sum() >= FEWEST
    if head.kind == "regression":
        return len(values) >= FEWEST
    counts = np.bincount(values.astype(int), minlength=head.outputs)
    return head.outputs <= 10 and bool((counts >= FEWEST).all())


def predict(head: TaskHead, support: Array, target: Array, queries: Array) -> Array:
    """``[Q, K]`` outputs as of a head: logits, scaled values or log risks.

    Parameters
    ----------
    head
        Description of the task.
    support, target
        ``[n, G]`` RNA of labelled training patients, and their targets as in a batch.
    queries
        ``[Q, G]`` RNA of the patients to predict.
    """
    from geneicl import GeneICL

    if head.kind == "survival":
        fitted = GeneICL(mode="survival", device="cpu").fit(support, target[:, 0], event=target[:, 1])
        return np.asarray(fitted.predict(queries), np.float64)[:, None]
    if head.kind == "regression":
        fitted = GeneICL(mode="regression", device="cpu").fit(support, target)
        return np.asarray(fitted.predict(queries), np.float64)[:, None]
    fitted = GeneICL(mode="classification", device="cpu").fit(support, target.astype(int))
    return np.log(np.clip(np.asarray(fitted.predict_proba(queries), np.float64), 1e-12, 1.0))
