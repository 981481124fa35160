"""Baselines of a fold: linear models of what is known without the study's model, fitted on the same training patients.

Each is one row of inputs → ridge or elastic net (:mod:`equipoise.platform.training.exact`), the penalty chosen by inner
folds of the training patients:

* ``cohort``: only where a patient comes from,
* ``covariate NAME``: one covariate alone,
* ``class of TASK``: for survival, the true class in another task (grade, subtype),
* ``covariates and classes``: all of these together, what a score must add to,
* ``presence of modalities``: only which tables and slides a patient has,
* ``elastic_net, tables`` and ``elastic_net, mean tile``: everything in the tables, and the mean tile,
* ``geneicl, rna``: a pretrained model of RNA, shown the training patients, where its package is installed
  (:mod:`equipoise.models.probes.geneicl`). It is no linear model, and it fits nothing.

A baseline is left out where it has nothing to read, or where no column differs among training patients.
"""

from __future__ import annotations

import itertools
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from equipoise.datasets.omics.fitting import CovariateTransform
from equipoise.datasets.omics.params import CLINICAL
from equipoise.models.batch import CaseBatch, TaskHead
from equipoise.models.entries import Penalty
from equipoise.models.probes import geneicl
from equipoise.models.probes.heads import likelihood_of
from equipoise.models.probes.likelihoods import Array
from equipoise.models.probes.rows import LinearRows
from equipoise.models.seeds import torch_seed
from equipoise.platform.errors import ResourceError
from equipoise.platform.evaluation.params import BaselineParams
from equipoise.platform.training.batches import CaseList, CaseSource, collate
from equipoise.platform.training.exact import Design, choose
from equipoise.platform.training.params import Recipe
from equipoise.platform.training.predict import CaseInfo, Outputs, Role, prediction_rows
from equipoise.platform.training.targets import Targets, fit_targets

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cases import Case
    from equipoise.datasets.cohorts.splits import Fold
    from equipoise.datasets.tables.tasks import Task

#: Beginnings of names, in the order in which baselines are shown.
ORDER = ("cohort", "covariate ", "class of ", "covariates and classes", "presence", "elastic_net", "geneicl")
#: Penalty of columns that are no genes and no tile features, relative to those.
FACTOR = 0.03
#: Models with few columns are hardly penalised: a few penalties suffice.
FEW_COLUMNS, FEW_PENALTIES, PENALTIES = 40, 6, 10


class MeanTiles(Mapping[str, "Case"]):
    """Cases whose bag is their mean tile; each slide is read once, however many folds there are."""

    def __init__(self, cases: Mapping[str, Case]) -> None:
        self._cases = cases
        self._known: dict[str, Case] = {}

    def __getitem__(self, patient: str) -> Case:
        if patient not in self._known:
            case = self._cases[patient]
            if len(case.bag):
                mean = case.bag.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
                case = replace(
                    case,
                    bag=mean,
                    coords=case.coords[:1],
                    slides=case.slides[:1],
                    tiles=(1,),
                    mpp=case.mpp[:1],
                )
            self._known[patient] = case
        return self._known[patient]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cases)

    def __len__(self) -> int:
        return len(self._cases)


@dataclass(frozen=True)
class _Part:
    """Columns and labels of some patients."""

    x: Array
    batches: Sequence[CaseBatch]
    infos: tuple[CaseInfo, ...]

    def stacked(self, kind: str, task: str) -> np.ndarray:
        return torch.cat([getattr(batch, kind)[task] for batch in self.batches]).double().numpy()


def fit_baselines(
    fold: Fold,
    tasks: Sequence[Task],
    cases: CaseSource,
    recipe: Recipe,
    params: BaselineParams,
    *,
    external: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Baseline → its predictions of the fold's validation and test patients, and of external ones.

    Parameters
    ----------
    fold
        Training, inner validation and test patients. Only training patients are fitted on.
    tasks
        As for the study's model.
    cases
        Reads a patient's case with all tables; :class:`MeanTiles` saves time.
    recipe
        Class weights, ties and tables of the study; its model does not matter.
    params
        Mixture of the elastic nets.
    external
        Patients of external cohorts that ``cases`` can read.
    seed
        Of inner folds.
    """
    import pandas as pd

    train = CaseList(cases, fold.train)
    targets = fit_targets(
        tasks,
        train,
        class_weights=recipe.training.class_weights,
        scaling=recipe.training.target_scaling,
        tables=recipe.tables,
    )
    model = LinearRows(targets.shape, targets.heads, FACTOR).eval()
    model.prepare([collate([case], targets) for case in train])
    fitted_on = _part(model, targets, train)
    roles: tuple[tuple[Role, Sequence[str]], ...] = (
        ("val", fold.val), ("test", fold.test), ("external", tuple(external)),
    )  # fmt: skip
    parts: dict[Role, _Part] = {}
    for role, names in roles:
        if names:
            listed = CaseList(cases, tuple(names))
            parts[role] = _part(model, targets.with_cohorts_of(listed), listed)
    with_geneicl = "rna" in model.widths and wants_geneicl(params)
    groups = _varying(_groups(model, targets), fitted_on.x)
    outputs: dict[str, dict[Role, dict[str, torch.Tensor]]] = {}
    designs = _Designs(fitted_on, targets, model, recipe)
    for head in targets.heads:
        for name, columns in _for_task(head, groups, targets).items():
            scored = _fit(designs.of(columns, strata=name != "cohort"), head, columns, parts, params, seed)
            for role, out in scored.items():
                outputs.setdefault(name, {}).setdefault(role, {})[head.name] = out
        if with_geneicl:
            for role, out in _in_context(head, fitted_on, parts, model).items():
                outputs.setdefault("geneicl, rna", {}).setdefault(role, {})[head.name] = out
    tables = {}
    for name in sorted(outputs, key=lambda name: [name.startswith(first) for first in ORDER].index(True)):
        by_role = outputs[name]
        rows = []
        for role, of_task in by_role.items():
            own = replace(targets, tasks=tuple(task for task in targets.tasks if task.head.name in of_task))
            result = Outputs(parts[role].infos, of_task, {}, {}, torch.empty(0))
            rows.append(prediction_rows(own, result, role=role, repeat=fold.repeat, fold=fold.index))
        tables[name] = pd.concat(rows, ignore_index=True)
    return tables


def fit_fold_baselines(
    folds: Sequence[Fold],
    tasks: Sequence[Task],
    develop: Mapping[str, Case],
    external: Mapping[str, Case],
    recipe: Recipe,
    params: BaselineParams,
) -> dict[str, pd.DataFrame]:
    """:func:`fit_baselines` of every fold, one table per baseline; one that a fold lacks is left out."""
    import pandas as pd

    cases = ChainMap(dict(develop), dict(external))
    parts: dict[str, list[pd.DataFrame]] = {}
    for fold in folds:
        seed = torch_seed(recipe.seed, fold.repeat, fold.index)
        of_fold = fit_baselines(fold, tasks, cases, recipe, params, external=tuple(external), seed=seed)
        for name, table in of_fold.items():
            parts.setdefault(name, []).append(table)
    return {
        name: pd.concat(tables, ignore_index=True)
        for name, tables in parts.items()
        if len(tables) == len(folds)
    }


def _part(model: LinearRows, targets: Targets, cases: CaseList) -> _Part:
    """The row of the elastic net, then cohorts, the true classes of classification tasks, and which modalities a case
    has: tables, then tiles."""
    batches = [collate([case], targets) for case in cases]
    first = targets.heads[0].name
    with torch.no_grad():
        rows = [torch.cat([model.latents(batch)[first] for batch in batches]).double().numpy()]
    cohort = np.array([targets.cohort_index(case.cohort) for case in cases])
    rows.append((cohort[:, None] == np.arange(len(targets.cohorts))).astype(float))
    for head in _classified(targets):
        truth = torch.cat([batch.targets[head.name] for batch in batches]).numpy()
        known = torch.cat([batch.label_mask[head.name] for batch in batches]).numpy()
        rows.append((truth[:, None] == np.arange(head.outputs)) * known[:, None].astype(float))
    present = [[batch.present[name] for name in model.widths] for batch in batches]
    tiles = [[batch.mask.any(dim=1)] if model.features else [] for batch in batches]
    flags = [torch.stack([*own, *bag], dim=1) for own, bag in zip(present, tiles, strict=True)]
    rows.append(torch.cat(flags).double().numpy())
    infos = tuple(CaseInfo(case.patient, case.cohort, case.site, case.targets) for case in cases)
    return _Part(np.concatenate(rows, axis=1), batches, infos)


def _classified(targets: Targets) -> list[TaskHead]:
    return [head for head in targets.heads if head.kind in ("binary", "multiclass")]


def _groups(model: LinearRows, targets: Targets) -> dict[str, list[int]]:
    """Baseline → its columns in the rows of :func:`_part`."""
    groups: dict[str, list[int]] = {}
    at = 0
    for modality, width in model.widths.items():
        own = list(range(at, at + width))
        groups.setdefault("elastic_net, tables", []).extend(own)
        transform = targets.tables[modality]
        if modality == CLINICAL and isinstance(transform, CovariateTransform):
            for name, part in covariate_columns(transform).items():
                groups[f"covariate {name}"] = [own[i] for i in part]
        at += width
    flags = list(range(at, at + (len(model.widths) if len(model.widths) > 1 else 0)))
    groups.setdefault("elastic_net, tables", []).extend(flags)
    at += len(flags)
    if model.features:
        groups["elastic_net, mean tile"] = list(range(at, at + model.features))
        at += model.features
    at = model.row_width
    groups["cohort"] = list(range(at, at + len(targets.cohorts)))
    at += len(targets.cohorts)
    for head in _classified(targets):
        groups[f"class of {head.name}"] = list(range(at, at + head.outputs))
        at += head.outputs
    count = len(model.widths) + bool(model.features)
    groups["presence of modalities"] = list(range(at, at + count))
    return groups


def _varying(groups: Mapping[str, list[int]], x: Array) -> dict[str, list[int]]:
    """Only the columns that differ among rows, and only the baselines that have some."""
    differs = x.max(axis=0) > x.min(axis=0)
    kept = {name: [c for c in columns if differs[c]] for name, columns in groups.items()}
    return {name: columns for name, columns in kept.items() if columns}


def covariate_columns(transform: CovariateTransform) -> dict[str, list[int]]:
    """Covariate → positions of its columns: the number and the indicator of its gaps, or all its categories."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(transform.names):
        category = next((c.column for c in transform.categories if name in c.names), None)
        found.setdefault(category or name.removesuffix(" missing"), []).append(i)
    return found


def _for_task(head: TaskHead, groups: Mapping[str, list[int]], targets: Targets) -> dict[str, list[int]]:
    """Baselines that make sense for a task: its own class is no input, and classes are inputs of survival only."""
    chosen = {
        name: columns
        for name, columns in groups.items()
        if not name.startswith("class of ") or head.kind == "survival"
    }
    known = [name for name in chosen if name.startswith(("covariate ", "class of "))]
    together = sorted({column for name in known for column in chosen[name]})
    if len(known) > 1:
        chosen["covariates and classes"] = together
    if chosen.get("elastic_net, tables") == together or (
        len(known) == 1 and chosen.get("elastic_net, tables") == chosen[known[0]]
    ):
        del chosen["elastic_net, tables"]  # the same columns under another name
    return chosen


def wants_geneicl(params: BaselineParams) -> bool:
    """Whether GeneICL is asked for and can run.

    Raises
    ------
    ResourceError
        If it is asked for and its package is not installed.
    """
    if params.geneicl is True and not geneicl.is_installed():
        raise ResourceError(
            "the baseline GeneICL needs the package geneicl, which is not installed",
            where="evaluation.baselines.geneicl",
            fix="pip install -e '.[geneicl]', or write geneicl: false",
        )
    return params.geneicl is not False and geneicl.is_installed()


def _in_context(
    head: TaskHead, train: _Part, parts: Mapping[Role, _Part], model: LinearRows
) -> dict[Role, torch.Tensor]:
    """Outputs of GeneICL for one task, by role, from the patients with RNA; none where it has no such task."""
    start = sum(
        width for name, width in itertools.takewhile(lambda item: item[0] != "rna", model.widths.items())
    )
    columns = slice(start, start + model.widths["rna"])
    has_rna = torch.cat([batch.present["rna"] for batch in train.batches]).numpy()
    known = (train.stacked("label_mask", head.name) > 0) & has_rna
    support, target = train.x[known, columns], train.stacked("targets", head.name)[known]
    if not geneicl.can_predict(head, target):
        return {}
    queries = np.concatenate([part.x[:, columns] for part in parts.values()])
    outputs = torch.from_numpy(geneicl.predict(head, support, target, queries))
    sizes = [len(part.x) for part in parts.values()]
    return dict(zip(parts, torch.split(outputs, sizes), strict=True))


class _Designs:
    """Training rows of groups of columns: prepared once for all tasks that read the same group."""

    def __init__(self, train: _Part, targets: Targets, model: LinearRows, recipe: Recipe) -> None:
        self._train = train
        cohorts = [batch.cohort for batch in train.batches if batch.cohort is not None]
        self._known, self._likelihoods, self._plain = {}, {}, {}
        for head in targets.heads:
            known = train.stacked("label_mask", head.name) > 0
            make = partial(
                likelihood_of,
                target=train.stacked("targets", head.name),
                class_weights=targets.class_weights.get(head.name),
                ties=recipe.training.ties,
                cohort=torch.cat(cohorts).numpy(),
            )
            likelihood = make(head)
            if likelihood.counts(known[:, None].astype(float))[0]:
                self._known[head.name], self._likelihoods[head.name] = known, likelihood
                self._plain[head.name] = make(replace(head, stratified=False))
        self._penal = np.full(train.x.shape[1], FACTOR)
        self._penal[: model.row_width] = np.where(model.factors == 1, 1.0, FACTOR)
        self._made: dict[tuple[int, ...], Design] = {}

    def of(self, columns: list[int], *, strata: bool) -> Design:
        """Rows of these columns; without strata, for what strata would take away: the cohort itself."""
        x = self._train.x[:, columns]
        if not strata:
            return Design(x, np.ones(len(columns)), None, self._plain, self._known)
        key = tuple(columns)
        if key not in self._made:
            factors = None if len(columns) <= FEW_COLUMNS else self._penal[columns]
            self._made[key] = Design(x, np.ones(len(columns)), factors, self._likelihoods, self._known)
        return self._made[key]


def _fit(
    design: Design,
    head: TaskHead,
    columns: list[int],
    parts: Mapping[Role, _Part],
    params: BaselineParams,
    seed: int,
) -> dict[Role, torch.Tensor]:
    """Outputs of one baseline for one task, by role; none where the task cannot be learned."""
    if head.name not in design.likelihoods:
        return {}
    few = len(columns) <= FEW_COLUMNS
    settings = Penalty(0.0 if few else params.l1_ratio, penalties=FEW_PENALTIES if few else PENALTIES)
    fit = choose(design, head.name, settings, seed).fit
    result: dict[Role, torch.Tensor] = {}
    for role, part in parts.items():
        out = torch.from_numpy(fit.outputs(part.x[:, columns]))
        result[role] = torch.cat([-out, out], dim=1) / 2 if head.kind == "binary" else out
    return result
