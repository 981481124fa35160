"""A synthetic search: a study, its space, and records of trials with made-up values."""

import math

import numpy as np

from equipoise.platform.search.configuration import config_from_study, trial_label
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.searchers import RandomSearch
from equipoise.platform.search.space import Config, Space
from equipoise.platform.search.space_builder import build_space
from equipoise.platform.search.trial_records import FoldScore, Status, Trial, trial_name
from equipoise.platform.study.schema import Study

METHODS = ("equal+none", "uncertainty+none", "equal+pcgrad", "uncertainty+pcgrad")
FOLDS = 3

STUDY = {
    "version": 1,
    "name": "crc-msi",
    "synthetic": True,
    "cohorts": [{"name": "A", "role": "develop", "clinical": "a.csv", "slides": "s.csv"}],
    "tasks": [
        {"name": "MSI", "type": "binary", "column": "MSI", "positive": "H"},
        {"name": "LISS", "type": "regression", "column": "LISS"},
        {"name": "OS", "type": "survival", "time": {"column": "t", "unit": "days"},
         "event": {"column": "e", "event_value": "1"}},
    ],
}  # fmt: skip


def study_of(search: dict | None = None) -> Study:
    """The study with a search over four methods, learning rate and dropout, or another one."""
    narrow = {
        "balancing": list(METHODS),
        "training.weight_decay": 0.01,
        "training.batch": 8,
        "model.dim": 384,
        "model.encoder_layers": [1, 2],
        "model.decoder_layers": 1,
    }
    return Study.model_validate({**STUDY, "search": {"space": narrow, **(search or {})}})


def space_of(study: Study) -> Space:
    return build_space(study, study.search or SearchParams())


def trials_of(study: Study, count: int = 24, seed: int = 0, failed: int = 2, pruned: int = 1) -> list[Trial]:
    """Trials of random search whose metrics depend on learning rate and method; the last ones fail or are pruned."""
    space = space_of(study)
    searcher = RandomSearch(space, seed)
    trials = []
    for index in range(count):
        config = config_from_study(study, space) if index == 0 else searcher.ask(index)
        left = count - index
        status: Status = "failed" if left <= failed else "pruned" if left <= failed + pruned else "ok"
        trials.append(trial_of(study, index, config, status, seed))
    return trials


def trial_of(study: Study, index: int, config: Config, status: Status = "ok", seed: int = 0) -> Trial:
    """One record; folds shift all trials equally, the rest is learning rate, method and a little noise."""
    rng = np.random.default_rng([seed, index])
    lr = float(config.get("training.lr") or 1e-4)  # type: ignore[arg-type]
    method = 0.05 * (config.get("balancing.weighting") == "uncertainty")
    quality = 0.75 - 0.08 * abs(math.log10(lr) + 4) + method
    count = {"ok": FOLDS, "pruned": 1, "failed": index % 2}[status]
    reasons = {
        "ok": "",
        "pruned": "stopped by asha after 1 of 3 folds",
        "failed": "FloatingPointError: the loss of MSI is nan",
    }
    hours = f"2026-11-21T{10 + index // 60:02d}:{index % 60:02d}"
    return Trial(
        index=index,
        name=trial_name(index, trial_label(config)),
        config=config,
        status=status,
        metric="val/mean",
        reason=reasons[status],
        folds=tuple(_fold(k, quality + 0.02 * (k - 1), rng) for k in range(count)),
        cpu_seconds=4.0 + index % 3,
        wall_seconds=5.0,
        host="node",
        started=f"{hours}:00+0000",
        ended=f"{hours}:50+0000",
    )


def _fold(k: int, quality: float, rng: np.random.Generator) -> FoldScore:
    a, b, c = (float(quality + rng.normal(0, 0.01)) for _ in range(3))
    values = {
        "val/MSI/auroc": a,
        "val/MSI/auprc": a - 0.2,
        "val/LISS/pearson": 2 * b - 1,
        "val/LISS/r2": b - 0.5,
    }
    values |= {"val/OS/c_index": c, "val/mean": (a + b + c) / 3}
    history = tuple(
        {"epoch": float(e), "lr": 1e-4, "train/MSI": 1 / e, "val/MSI": 1.2 / e, "weight/MSI": 1 + 0.1 * e,
         "weight/LISS": 1 - 0.1 * e, "weight/OS": math.nan, "conflict_rate": 0.3, "cosine/MSI|LISS": -0.1,
         "monitor": 2 / e}
        for e in (1, 2, 3)
    )  # fmt: skip
    return FoldScore(f"0-{k}", values, 3, 2, 1000 + k, 2.0, 2.5, history)
