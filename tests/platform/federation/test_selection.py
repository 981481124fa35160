"""Budget and selection: a federation trains as long as other trainings do and keeps the best of its rounds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.omics.fitting import columns_of
from equipoise.datasets.tables.tasks import RegressionTask, SurvivalTask
from equipoise.models.cox import cox_partial_likelihood
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.clients.validation import SiteValidation
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.targets import fit_targets


def section(**settings: object) -> FederationParams:
    return FederationParams.model_validate(settings)


def test_what_the_section_leaves_open_is_that_of_training() -> None:
    training = TrainingParams(epochs=30, patience=7, lr=0.02, weight_decay=0.3, schedule="cosine")
    made = section(local={"epochs": 4}).in_training(training)
    assert (made.rounds, made.patience, made.keep) == (8, 2, "best"), "passes over the patients"
    assert (made.local.lr, made.local.schedule, made.local.weight_decay) == (0.02, "cosine", 0.3)
    assert made.in_training(training) == made
    sgd = section(local={"optimizer": "sgd"}).in_training(training)
    assert sgd.local.weight_decay == 0.0, "the decay of AdamW is another quantity"
    said = section(
        rounds=3, patience=1, keep="last", local={"lr": 1.0, "weight_decay": 2.0, "schedule": "constant"}
    )
    assert said.in_training(training) == said
    alone = section().in_training()
    assert (alone.rounds, alone.keep, alone.local.schedule) == (20, "last", "constant")


def test_nothing_is_selected_under_differential_privacy() -> None:
    private = {
        "privacy": {"statistics": "public", "record_level": {"clip": 1.0, "noise": 1.0, "delta": 1e-3}}
    }
    assert section(**private).in_training(TrainingParams()).keep == "last"
    with pytest.raises(ValidationError, match="without noise: write keep: last"):
        section(**private, keep="best")
    with pytest.raises(ValidationError, match="chosen by validation losses without noise"):
        section(**private, candidates=[{"rounds": 3}])


def test_candidates_are_checked() -> None:
    with pytest.raises(ValidationError, match="no setting 'stratgy'"):
        section(candidates=[{"stratgy": "ditto"}])
    with pytest.raises(ValidationError, match="sites is the same for all of them"):
        section(candidates=[{"sites": "tss"}])
    with pytest.raises(ValidationError, match="scaffold is defined for SGD"):
        section(candidates=[{"strategy": "scaffold"}])
    params = section(
        strategy="fedprox", strategy_params={"mu": 0.3}, local={"steps": 2, "optimizer": "sgd"},
        candidates=[{"strategy": "ditto"}, {"local": {"epochs": 3}, "training": {"lr": 0.1}}],
    )  # fmt: skip
    first, second = (params.variant(candidate) for candidate in params.candidates)
    assert (first.strategy, first.strategy_params) == ("ditto", {}), (
        "parameters of another method do not stay"
    )
    assert (second.strategy_params, second.local.epochs, second.local.steps) == ({"mu": 0.3}, 3, None)
    assert second.local.optimizer == "sgd"


def scripted(values: list[float]) -> Callable[[np.ndarray], dict[str, float]]:
    """Validation that answers with these values in turn."""
    left = iter(values)
    return lambda vector: {"val/OS": 1.0, "monitor": next(left)}


MONITOR = [3.0, 1.0, 2.0, 1.0, 2.0, 0.5]


def test_the_best_round_is_kept_and_patience_ends_training(federate: Callable[..., Simulation]) -> None:
    long = federate(rounds=6, keep="best", patience=3, extra={"validate": scripted(MONITOR)}).run()
    assert (long.kept_round, len(long.history)) == (2, 5), (
        "the first of equals, and three rounds without improvement"
    )
    assert np.array_equal(long.vector, federate(rounds=2).run().vector)
    patient = federate(rounds=6, keep="best", patience=6, extra={"validate": scripted(MONITOR)}).run()
    assert (patient.kept_round, len(patient.history)) == (6, 6)
    last = federate(rounds=4, keep="last", extra={"validate": scripted(MONITOR)}).run()
    assert last.kept_round == 4
    assert np.array_equal(last.vector, federate(rounds=4).run().vector)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_resumed_federation_keeps_the_same_round(
    after: int, federate: Callable[..., Simulation], tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def interrupt(row: dict[str, float]) -> None:
        if row["round"] == after:
            raise StoppedError

    settings = {"rounds": 6, "keep": "best", "patience": 3, "strategy": "finetune"}
    whole = federate(**settings, extra={"validate": scripted(MONITOR)}).run()
    extra = {"validate": scripted(MONITOR), "folder": tmp_path, "on_round": interrupt}
    with pytest.raises(StoppedError):
        federate(**settings, extra=extra).run()
    extra = {"validate": scripted(MONITOR[after:]), "folder": tmp_path}
    resumed = federate(**settings, extra=extra).run()
    assert resumed.kept_round == whole.kept_round == 2
    assert np.array_equal(resumed.vector, whole.vector)
    assert all(np.array_equal(resumed.personal[c], whole.personal[c]) for c in whole.personal)


TASKS = (
    SurvivalTask(
        name="OS",
        time={"column": "t", "unit": "days"},
        event={"column": "e", "event_value": "dead"},
        main=True,
    ),
    RegressionTask(name="LF", column="LF"),
)


def table_cases(site: str, count: int, seed: int) -> CaseList:
    rng = np.random.default_rng(seed)
    cases = {}
    for i in range(count):
        x = rng.normal(size=4).astype(np.float32)
        targets = {"OS": (float(rng.exponential(100)) + 1, float(i % 2)), "LF": float(x.sum())}
        cases[f"{site}{i}"] = Case(
            f"{site}{i}", "C", site, np.zeros((0, 0), np.float16), np.zeros((0, 2), np.int32), (), (),
            {"rna": x}, targets,
        )  # fmt: skip
    return CaseList(cases, tuple(cases))


def test_validation_sums_are_those_of_the_sites() -> None:
    """Cox: what validation patients add to the partial likelihood of their site; others: the plain sum."""
    data = {s: ClientData(table_cases(s, 20, k), table_cases(f"{s}v", 6, k + 9)) for k, s in enumerate("AB")}
    targets = fit_targets(TASKS, [case for one in data.values() for case in one.train])

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([0.5, -0.2, 0.1, 0.3]))

        def forward(self, batch):
            score = (batch.omics["rna"] @ self.weight)[:, None]
            return {"OS": score, "LF": score}

    model = Linear()
    validation = SiteValidation(targets, data, TrainingParams(device="cpu"), min_n=5)
    row = validation.monitor(lambda client: model)
    added, events, squares = 0.0, 0.0, []
    for one in data.values():
        rows = []
        for cases in (one.train, one.val):
            x = np.stack(
                [targets.tables["rna"].apply(c.omics["rna"], columns_of(4, None), "C") for c in cases]
            )
            risk = torch.tensor(x, dtype=torch.float64) @ model.weight.detach().double()
            days, died = (torch.tensor([c.targets["OS"][i] for c in cases]) for i in (0, 1))
            rows.append((risk, days, died))
            if cases is one.val:
                lf = next(task for task in targets.tasks if task.head.name == "LF")
                truth = np.array([lf.encode(c.targets["LF"]) for c in cases])
                squares += ((risk.numpy() - truth) ** 2).tolist()
        both = [torch.cat(part) for part in zip(*rows, strict=True)]
        added += float(cox_partial_likelihood(*both) - cox_partial_likelihood(*rows[0]))
        events += float(rows[1][2].sum())
    assert row["val/OS"] == pytest.approx(added / events, rel=1e-5)
    assert row["val/LF"] == pytest.approx(np.mean(squares), rel=1e-5)
    assert row["monitor"] == pytest.approx(row["val/OS"] + row["val/LF"])
    silent = SiteValidation(targets, data, TrainingParams(device="cpu"), min_n=7)
    assert "val/LF" not in silent.monitor(lambda client: model), (
        "six validation patients are fewer than min_n"
    )
