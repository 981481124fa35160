"""What the embeddings of a trained model are worth in a cohort that it has not seen.

Of every external cohort three predictors are scored on the same out-of-fold patients, task by task:

- **probe**: nothing of the model is trained further. Its fold models turn each patient into the vector that the task's
  head reads, and a ridge (logistic, softmax, linear or Cox) is fitted to those vectors and to labels of the cohort
  itself, by cross-validation in the cohort, its penalty on inner folds. Outputs are averaged over the fold models.
- **zero-shot**: the model as it is, without a label of the cohort: for a head on text the nearest label, else the
  direct head.
- **baselines**: ridges of which modalities a patient has, of the tables and of the mean tile, fitted to the same
  patients of the cohort as the probe, so that it is seen whether the embedding is worth its training.

Classes are those that occur in the cohort: what a cancer can have is known. Two classes are scored as two, so that the
balanced accuracy is that of the larger probability.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.cohorts.splits import Fold
from equipoise.models.batch import TaskHead
from equipoise.models.entries import Penalty
from equipoise.models.losses import balanced_weights
from equipoise.models.probes.heads import likelihood_of, smallest_group
from equipoise.models.probes.likelihoods import Array, Likelihood
from equipoise.models.probes.selection import inner_folds
from equipoise.models.seeds import torch_seed
from equipoise.platform.errors import DataWarning
from equipoise.platform.evaluation.params import BaselineParams, TransferParams
from equipoise.platform.evaluation.samples import external_ensemble
from equipoise.platform.training.baselines import fit_baselines
from equipoise.platform.training.exact import Design, choose
from equipoise.platform.training.params import Recipe
from equipoise.platform.training.statistics import is_missing

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cases import Case
    from equipoise.datasets.tables.tasks import Task

#: Predictors in the order in which they are shown; baselines follow.
PROBE, ZERO_SHOT, PRESENCE = "probe", "zero-shot", "presence of modalities"
#: Penalties that a probe tries.
_PENALTIES = 10

log = logging.getLogger("equipoise")


@dataclass(frozen=True)
class _Labelled:
    """Labelled patients of a cohort for one task, and which fold tests each of them.

    ``rows`` are the zero-shot rows of the predictions table, ``classes`` their classes in the order of the outputs.
    """

    head: TaskHead
    cases: tuple[Case, ...]
    target: Array
    fold: np.ndarray
    classes: tuple[str, ...]
    rows: pd.DataFrame

    def likelihood(self, use: np.ndarray) -> Likelihood:
        """The loss of a probe, its class weights from the cases to use."""
        counts = np.bincount(self.target[use].astype(int)).tolist() if self.classes else []
        weights = balanced_weights(counts) if counts else None
        return likelihood_of(self.head, self.target, class_weights=weights)

    def scored(self, outputs: Array) -> pd.DataFrame:
        """Rows with the scores of these outputs ``[n, K]``, NaN for who was not scored."""
        import pandas as pd

        names = [case.patient for case in self.cases]
        if not self.classes:
            scores = pd.Series(outputs[:, 0], index=names)
            return self.rows.assign(score=self.rows["patient"].map(scores))
        top = outputs - outputs.max(axis=1, keepdims=True)
        shares = np.exp(top) / np.exp(top).sum(axis=1, keepdims=True)
        table = pd.DataFrame(shares, index=names, columns=list(self.classes))
        keys = zip(self.rows["patient"], self.rows["class"], strict=True)
        return self.rows.assign(score=[float(table.at[key]) for key in keys])


def fit_transfer(
    tasks: Sequence[Task],
    cases: Mapping[str, Case],
    vectors: pd.DataFrame,
    predictions: pd.DataFrame,
    recipe: Recipe,
    params: TransferParams,
) -> dict[str, dict[str, pd.DataFrame]]:
    """External cohort → predictor → rows of a predictions table, each patient tested once (role ``test``).

    Parameters
    ----------
    tasks
        Of the study. A task is left out of a cohort with fewer than two classes, or two of either (events), there.
    cases
        External patients with all their tables; :class:`~equipoise.platform.training.baselines.MeanTiles` saves time.
    vectors, predictions
        Latents and predictions of all fold models; only those of external patients are read, and the validation
        patients' risks that :func:`~equipoise.platform.evaluation.samples.external_ensemble` scales by.
    recipe
        Tables, ties and seed of the study.
    params
        Folds in a cohort.
    """
    import pandas as pd

    everyone, seed = list(cases.values()), torch_seed(recipe.seed, 0, 0)
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for cohort in sorted({case.cohort for case in everyone}):
        here = [case for case in everyone if case.cohort == cohort]
        parts: dict[str, list[pd.DataFrame]] = {}
        for task in tasks:
            labelled = _labelled(task, here, predictions, params, seed)
            if labelled is None:
                log.warning("transfer: %s has too few labels of %s in %s", task.name, task.type, cohort)
                continue
            latents = vectors[(vectors["task"] == task.name) & (vectors["role"] == "external")]
            for name, rows in _predictors(task, labelled, latents, cases, recipe, seed):
                parts.setdefault(name, []).append(rows)
        if parts:
            found[cohort] = {name: pd.concat(rows, ignore_index=True) for name, rows in parts.items()}
    return found


def _labelled(
    task: Task, cases: Sequence[Case], predictions: pd.DataFrame, params: TransferParams, seed: int
) -> _Labelled | None:
    known = [case for case in cases if not is_missing(case.targets.get(task.name))]
    target = np.array([case.targets[task.name] for case in known], np.float64)
    if not known:
        return None
    outputs, classes = 1, tuple[str, ...]()
    rows = external_ensemble(predictions[predictions["task"] == task.name])
    rows = rows[rows["patient"].isin([case.patient for case in known])]
    if task.type in ("binary", "multiclass"):
        names = task.class_names
        if task.type == "binary":
            rows, names = _both_classes(rows), (f"not {names[0]}", names[0])
        here, number = np.unique(target, return_inverse=True)
        classes = tuple(names[int(k)] for k in here)
        rows = _among(rows, classes)
        outputs, target = len(classes), number.astype(np.float64)
        if outputs < 2:
            return None
    kind = "multiclass" if classes else task.type
    head = TaskHead(task.name, kind, outputs)
    one = _Labelled(head, tuple(known), target, np.zeros(len(known), np.int64), classes, rows)
    everybody = np.ones(len(known), bool)
    likelihood = one.likelihood(everybody)
    folds = min(params.folds, smallest_group(likelihood, everybody))
    if folds < 2:
        return None
    fold = inner_folds(likelihood, everybody, folds, seed)
    of_patient = dict(zip((case.patient for case in known), fold.tolist(), strict=True))
    rows = rows.assign(role="test", repeat=0, fold=rows["patient"].map(of_patient))
    return _Labelled(head, tuple(known), target, fold, classes, rows)


def _both_classes(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a binary task with the negative class beside the positive one."""
    import pandas as pd

    negative = rows.assign(score=1 - rows["score"], target=1 - rows["target"])
    return pd.concat([negative.assign(**{"class": "not " + rows["class"]}), rows], ignore_index=True)


def _among(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Rows of some classes, whose probabilities then sum to 1."""
    kept = rows[rows["class"].isin(classes)]
    total = kept.groupby("patient")["score"].transform("sum")
    return kept.assign(score=(kept["score"] / total.where(total > 0)).fillna(1 / len(classes)))


def _predictors(
    task: Task,
    labelled: _Labelled,
    latents: pd.DataFrame,
    cases: Mapping[str, Case],
    recipe: Recipe,
    seed: int,
) -> Iterator[tuple[str, pd.DataFrame]]:
    names = [case.patient for case in labelled.cases]
    spaces = []
    for _, rows in latents.groupby(["repeat", "fold"], sort=True):
        of_patient = rows.set_index("patient")["latent"]
        spaces.append(np.stack(of_patient.reindex(names).to_list()).astype(np.float64))
    if spaces:
        outputs = [_out_of_fold(labelled, x, recipe, seed) for x in spaces]
        yield PROBE, labelled.scored(np.mean(outputs, axis=0))
    yield ZERO_SHOT, labelled.rows
    present = np.array([_present(case, labelled.cases) for case in labelled.cases], np.float64)
    varying = present.max(axis=0) > present.min(axis=0)
    if varying.any():
        yield PRESENCE, labelled.scored(_out_of_fold(labelled, present[:, varying], recipe, seed))
    yield from _baselines(task, labelled, cases, recipe, seed)


def _present(case: Case, others: Sequence[Case]) -> list[bool]:
    """Whether the case has tiles, and each of the tables that any of them has."""
    tables = sorted({name for other in others for name in other.omics})
    return [len(case.bag) > 0, *(name in case.omics for name in tables)]


def _out_of_fold(labelled: _Labelled, x: Array, recipe: Recipe, seed: int) -> Array:
    """``[n, K]`` outputs of ridges that were fitted without the fold of the patient."""
    outputs = np.full((len(x), labelled.head.outputs), np.nan)
    task = labelled.head.name
    for k in np.unique(labelled.fold):
        test = labelled.fold == k
        centred = x - x[~test].mean(axis=0)
        likelihood = labelled.likelihood(~test)
        design = Design(centred, np.ones(x.shape[1]), None, {task: likelihood}, {task: ~test})
        fit = choose(design, task, Penalty(0.0, penalties=_PENALTIES), seed).fit
        outputs[test] = fit.outputs(centred[test])
    return outputs


def _baselines(
    task: Task, labelled: _Labelled, cases: Mapping[str, Case], recipe: Recipe, seed: int
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Ridges of tables and of the mean tile, on the same folds."""
    import pandas as pd

    names = np.array([case.patient for case in labelled.cases], dtype=object)
    parts: dict[str, list[pd.DataFrame]] = {}
    folds = np.unique(labelled.fold)
    for k in folds:
        train, test = (tuple(names[part].tolist()) for part in (labelled.fold != k, labelled.fold == k))
        fold = Fold(0, int(k), train, (), test)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # of classes that the cohort does not have
            fitted = fit_baselines(fold, [task], cases, recipe, BaselineParams(geneicl=False), seed=seed)
        for name, rows in fitted.items():
            parts.setdefault(name, []).append(rows)
    for name, tables in parts.items():
        if not name.startswith("elastic_net") or len(tables) < len(folds):
            continue
        rows = pd.concat(tables, ignore_index=True)
        if task.type == "binary":
            rows = _both_classes(rows)
        yield name, _among(rows, labelled.classes) if labelled.classes else rows
