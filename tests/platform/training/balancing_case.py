"""A small training for every balancing method, run alone or as one of two workers.

As a script, ``python balancing_case.py RANK FOLDER``, it is one of two workers that train every method in one
process group and write ``<method>-<rank>.pt`` with weights and history to the folder.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask, SurvivalTask
from equipoise.platform.registry import entries
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.distributed import SINGLE_WORKER, WorkerGroup
from equipoise.platform.training.loop import Reporter, fit
from equipoise.platform.training.params import BalancingParams, TrainingParams, refusal
from equipoise.platform.training.targets import Targets, fit_targets

TASKS = (
    BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS", main=True),
    RegressionTask(name="LF", column="LF"),
    SurvivalTask(
        name="OS", time={"column": "t", "unit": "days"}, event={"column": "e", "event_value": "dead"}
    ),
)
PARAMS = {"static": {"weights": {"MSI": 0.5, "LF": 0.3, "OS": 0.2}}}

#: Methods with gradients at the representation, or coefficients kept for some steps.
CHEAP = [
    "equal+pcgrad@representation:1",
    "uncertainty+fairgrad@representation:2",
    "gradnorm+none@representation:1",
    "equal+cagrad@parameters:3",
    "auto_lambda+gradvac@parameters:2",
]

#: Methods whose Cox likelihood compares with all training patients, in a stratified order.
REMEMBERED = ["equal+none%memory", "auto_lambda+pcgrad%memory"]

#: Fusion, modulation and their parameters of a model with branches, and the balancing method.
MODULATED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gradmod": ("concat", {}, "equal+none"),
    "update": ("concat", {"acts_on": "update", "ratio": "geometric"}, "equal+none"),
    "ogm_ge": ("kronecker", {}, "equal+none"),
    "aux_losses": ("late", {}, "uncertainty+none"),
    "tasks": ("attention", {"enter": "tasks"}, "uncertainty+pcgrad"),
    "rank_distillation": ("concat", {}, "equal+none"),
    "memory": ("concat", {"weight": 0.3}, "equal+none"),
}


def methods() -> list[str]:
    """Every weighting alone, every aggregator alone, and the paper's grid."""
    weightings, aggregators = list(entries("weightings")), list(entries("aggregators"))
    grid = itertools.product(
        ("equal", "uncertainty", "dwa", "auto_lambda"), ("none", "graddrop", "pcgrad", "cagrad")
    )
    names = [f"{w}+none" for w in weightings] + [f"equal+{a}" for a in aggregators]
    names += ["+".join(cell) for cell in grid] + ["imtl_l+imtl_g"]
    kept = [name for name in dict.fromkeys(names) if refusal(*name.split("+")) is None]
    return kept + CHEAP + REMEMBERED


def balancing_of(name: str) -> BalancingParams:
    """The method with its required parameters; ``<method>@<place>:<every>%<risk sets>``."""
    method, _, cheap = name.partition("%")[0].partition("@")
    place, _, every = cheap.partition(":")
    weighting, aggregation = method.split("+")
    return BalancingParams(
        weighting=weighting,
        aggregation=aggregation,
        weighting_params=PARAMS.get(weighting, {}),
        at=place or "parameters",
        every=every or 1,
    )


def cases() -> dict[str, Case]:
    """19 patients: of 13 in batches of 4 the last leaves one worker without; labels are missing here and there."""
    rng = np.random.default_rng(1)
    made = {}
    for i in range(19):
        bag = rng.normal(size=(5, 6)).astype(np.float16)
        burden = float(bag[:, 1].mean())
        patient = f"P{i:02d}"
        targets: dict[str, Any] = {
            "MSI": float(i % 2),
            "LF": burden if i % 5 else math.nan,
            "OS": (float(np.exp(5 - burden)), float(i % 3 > 0)) if i % 4 else (math.nan, math.nan),
        }
        made[patient] = Case(
            patient,
            f"SYN-{i % 3 // 2}",
            f"S{i % 2}",
            bag,
            np.zeros((5, 2), np.int32),
            (patient,),
            (5,),
            {},
            targets,
        )
    return made


def train(
    name: str,
    group: WorkerGroup = SINGLE_WORKER,
    *,
    report: Reporter | None = None,
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """Weights and history after two epochs of four steps."""
    everyone = cases()
    patients = tuple(everyone)
    train, val = CaseList(everyone, patients[:13]), CaseList(everyone, patients[13:])
    targets = fit_targets(TASKS, train)
    small = {
        "dim": 8,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "feedforward": 8,
        "dropout": 0.0,
    }
    return _fitted(
        "joint",
        small,
        targets,
        train,
        val,
        balancing_of(name),
        group,
        report,
        checkpoint,
        name.partition("%")[2],
    )


def train_branches(name: str, group: WorkerGroup = SINGLE_WORKER) -> dict[str, Any]:
    """The same with a model of branches, a table of RNA that every fourth patient lacks, and a modulation."""
    rng = np.random.default_rng(2)
    everyone = {
        patient: replace(case, omics={"rna": rng.normal(size=4).astype(np.float32)} if i % 4 else {})
        for i, (patient, case) in enumerate(cases().items())
    }
    patients = tuple(everyone)
    train, val = CaseList(everyone, patients[:13]), CaseList(everyone, patients[13:])
    targets = fit_targets(TASKS, train)
    fusion, params, balancing = MODULATED[name]
    entry = {"update": "gradmod", "tasks": "aux_losses", "memory": "aux_losses"}.get(name, name)
    small = {
        "image": "mean_pool",
        "image_params": {"dim": 5, "dropout": 0.0},
        "dim": 5,
        "layers": 1,
        "dropout": 0.0,
        "fusion": fusion,
        "fusion_params": {"dropout": 0.0} if fusion in ("kronecker", "attention") else {},
        "modulation": entry,
        "modulation_params": params,
    }
    risk_sets = "memory" if name == "memory" else ""
    return _fitted("gptomic", small, targets, train, val, balancing_of(balancing), group, risk_sets=risk_sets)


def _fitted(
    kind: str,
    small: dict[str, Any],
    targets: Targets,
    train: CaseList,
    val: CaseList,
    balancing: BalancingParams,
    group: WorkerGroup,
    report: Reporter | None = None,
    checkpoint: Path | None = None,
    risk_sets: str = "",
) -> dict[str, Any]:
    model = build_model(kind, small, targets.shape, targets.heads, seed=1)
    # A smooth monitor: metrics of six patients may change with the last digit of a score.
    params = TrainingParams(epochs=2, lr=1e-3, batch=4, patience=9, device="cpu", monitor="val_loss")
    if risk_sets:
        params = params.model_copy(update={"risk_sets": risk_sets, "order": "stratified"})
    result = fit(
        model,
        targets,
        train,
        val,
        params,
        seed=3,
        balancing=balancing,
        group=group,
        report=report,
        checkpoint=checkpoint,
    )
    return {"weights": model.state_dict(), "history": list(result.history)}


def _main(rank: int, folder: Path) -> None:
    from equipoise.platform.training.distributed import ProcessGroup

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    group = ProcessGroup()
    for name in methods():
        result = train(name, group)
        torch.save(result, folder / f"{name}-{rank}.pt")
    for name in MODULATED:
        torch.save(train_branches(name, group), folder / f"branches-{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]))
