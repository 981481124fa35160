"""Trials of a federated study: a federation for every fold, interrupted or not, from search to best study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import equipoise.platform.federation.simulation.ray_backend as ray_backend
from equipoise.datasets.atomic_io import read_json
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.errors import DataError
from equipoise.platform.errors import StudyError
from equipoise.platform.evaluation.metrics import auroc
from equipoise.platform.federation import engine
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.simulation.fold import validate_in_rounds
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.federation.simulation.sites import Client
from equipoise.platform.federation.standardisation import federated_targets
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.search.configuration import study_from_config
from equipoise.platform.search.context import SearchContext
from equipoise.platform.search.estimate import describe_search
from equipoise.platform.search.federated_trial import outputs_of
from equipoise.platform.search.holdout import measure
from equipoise.platform.search.search import prepare, run_inline, run_search
from equipoise.platform.search.selection import rebase_paths
from equipoise.platform.search.trackers import curve_points
from equipoise.platform.search.trial import check_hidden_patients, run_trial, trials_folder, work_folder
from equipoise.platform.search.trial_records import Trial, read_trials
from equipoise.platform.study.schema import Study
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model, recipe_of
from equipoise.platform.training.crossval import fold_seed
from equipoise.platform.training.predict import predict, run_model
from equipoise.platform.training.targets import Targets

Make = Callable[..., Any]

FEDERATION: dict[str, Any] = {
    "sites": {"scheme": "iid", "clients": 2},
    "rounds": 2,
    "min_n": 1,
    "backend": "inline",
}
SPACE: dict[str, Any] = {
    "balancing": ["equal", "uncertainty"],
    "federation.strategy": ["fedavg", "ditto"],
    "training.lr": {"loguniform": [1e-3, 1e-2]},
    "training.batch": 8,
    "training.bag_tiles": 8,
    "model.dim": 8,
    "model.dropout": 0.1,
    "model.layers": 1,
}
#: Personal models beside the global one.
DITTO = {"federation.strategy": "ditto", "federation.ditto.lam": 0.2, "training.lr": 5e-3}


@pytest.fixture(scope="module")
def federating(make_study: Make) -> Make:
    """``federating(trials=3, …)``: the study with a federation and this ``search`` section."""

    def make(federation: dict[str, Any] | None = None, **search: Any) -> Study:
        return make_study({"federation": FEDERATION | (federation or {})}, **{"space": SPACE, **search})

    return make


@pytest.fixture(scope="module")
def search_context(federating: Make) -> SearchContext:
    return prepared_of(federating({"backend": "ray"}))


def prepared_of(study: Study, folder: Path = Path("unused")) -> SearchContext:
    return prepare(study, RunContext(study, RunFolder(folder)).inputs)


def by_hand(
    search_context: SearchContext, fold: Fold, config: Mapping[str, Any]
) -> tuple[FederationResult, Targets, pd.DataFrame]:
    """The federation of a fold, its targets, and predictions of every held-out patient by the model of its client."""
    study = study_from_config(search_context.inputs.settings, dict(config))
    recipe, cases = recipe_of(study), search_context.inputs.cases
    owner = {p: client.name for client in search_context.inputs.clients for p in client.patients}

    def of(part: tuple[str, ...], client: str) -> CaseList:
        return CaseList(cases, tuple(p for p in part if owner[p] == client))

    names = sorted(set(owner.values()))
    targets = federated_targets(study.tasks, {c: of(fold.train, c) for c in names}, min_n=1)
    seed = fold_seed(recipe.seed, fold)
    factory = partial(build_model, recipe.model, recipe.model_params, targets.shape, targets.heads, seed=seed)
    assert study.federation is not None
    params = study.federation.model_copy(update={"backend": "inline"}).in_training(recipe.training)
    simulation = Simulation(
        factory, targets, {c: ClientData(of(fold.train, c), of(fold.val, c)) for c in names}, params,
        seed=seed, training=recipe.training, balancing=recipe.balancing,
    )  # fmt: skip
    validate_in_rounds(simulation, recipe.training)
    result = simulation.run()
    tables = [
        predict(result.personal_model(c), targets, of(fold.test, c), role="test", repeat=0, fold=0)
        for c in names
    ]
    return result, targets, pd.concat(tables)


def compared(trial: Trial) -> list[Any]:
    return [trial.name, trial.config, trial.status, trial.means, [fold.history for fold in trial.folds]]


def test_a_trial_is_the_federation_of_every_fold(
    search_context: SearchContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ray_backend, "RayBackend")  # a trial has no workers, whatever the study says
    clients = search_context.inputs.clients
    assert [client.name for client in clients] == ["client-0", "client-1"]
    assert sorted(p for client in clients for p in client.patients) == list(search_context.searched)
    trial = run_trial(1, DITTO, search_context.inputs, tmp_path)
    assert (trial.status, trial.reason, trial.name) == ("ok", "", "001-ditto")
    assert not work_folder(tmp_path, 1).exists(), "rounds are kept while the trial runs"
    for fold, score in zip(search_context.inputs.folds, trial.folds, strict=True):
        result, _, table = by_hand(search_context, fold, DITTO)
        msi, lf = (table[table["task"] == task].dropna(subset="target") for task in ("MSI", "LF"))
        assert score.values["val/MSI/auroc"] == auroc(msi["target"] == 1, msi["score"])
        assert score.values["val/LF/pearson"] == pytest.approx(
            np.corrcoef(lf["target"], lf["score"])[0, 1], abs=1e-6
        )
        assert (score.epochs, score.best_epoch) == (len(result.history), result.kept_round)
        assert score.parameters == sum(p.numel() for p in result.model.parameters())
        assert [row["train/MSI"] for row in score.history] == [row["loss/MSI"] for row in result.history]
    tags = {point.tag for point in curve_points(trial)}
    assert {"train_loss/LF/0-1", "update_norm/0-0", "lr/0-0", "fold/MSI/auroc"} <= tags


def test_patients_of_no_client_are_evaluated_by_the_global_model(search_context: SearchContext) -> None:
    fold, cases = search_context.inputs.folds[0], search_context.inputs.cases
    result, targets, _ = by_hand(search_context, fold, DITTO)
    first = search_context.inputs.clients[0]
    members, rest = first.of(fold.test), tuple(p for p in fold.test if p not in first.patients)
    outputs = outputs_of(result, targets, fold, {first.name: Fold(0, 0, (), (), members)}, cases, "cpu")
    assert [info.patient for info in outputs.infos] == [*members, *rest]
    for model, who in ((result.personal_model(first.name), members), (result.model, rest)):
        expected = run_model(model, targets, CaseList(cases, who)).outputs["MSI"]
        places = [k for k, info in enumerate(outputs.infos) if info.patient in who]
        assert outputs.outputs["MSI"][places].tolist() == expected.tolist()


def test_a_killed_trial_goes_on_after_its_last_round(
    search_context: SearchContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_trial(7, DITTO, search_context.inputs, tmp_path / "whole")
    saved, save = [], engine.save_checkpoint

    def interrupted(*arguments: Any, **options: Any) -> Path:
        path = save(*arguments, **options)
        saved.append(path)
        if len(saved) == 3:  # in the second fold
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(engine, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_trial(7, DITTO, search_context.inputs, tmp_path / "twice")
    kept = {path.name for path in work_folder(tmp_path / "twice", 7).iterdir()}
    assert kept == {"begun.json", "fold-0-0.json", "fold-0-1"}, "rounds of a finished fold are dropped"
    again = run_trial(7, DITTO, search_context.inputs, tmp_path / "twice")
    assert len(saved) == 4, "rounds that were done were done again"
    assert compared(again) == compared(whole)


def test_a_client_that_holds_hidden_patients_is_refused(search_context: SearchContext) -> None:
    hidden = search_context.held_out[0]
    clients = (*search_context.inputs.clients, Client("more", (hidden,), ("more",)))
    with pytest.raises(DataError, match=rf"could see 1 patients.*{hidden} \(hold-out\)"):
        check_hidden_patients(
            dataclasses.replace(search_context.inputs, clients=clients), {hidden: "hold-out"}
        )


@pytest.mark.slow
def test_searched_measured_and_written_as_a_study(federating: Make, bags: Path, tmp_path: Path) -> None:
    study = federating(trials=4, searcher="grid", levels=2, space=SPACE | {"training.lr": 5e-3})
    work = RunContext(study, RunFolder(tmp_path / "run"))
    folder = work.folder.search
    metadata = run_search(study, work.inputs, work.folder.root)
    assert (metadata["trials"], metadata["failed"]) == (4, 0)
    trials = read_trials(trials_folder(folder))
    assert trials[0].config["federation.strategy"] == "fedavg"
    assert {trial.config["federation.strategy"] for trial in trials} == {"fedavg", "ditto"}
    plain = run_inline(prepared_of(study), tmp_path / "plain")
    assert [compared(trial) for trial in trials] == [compared(trial) for trial in plain]
    best = load_study(folder / "best.yaml")
    winner = next(trial for trial in trials if trial.name == metadata["best"])
    assert best.federation is not None
    assert best.federation.strategy == winner.config["federation.strategy"]
    assert best.federation.rounds == 2
    with pytest.raises(StudyError, match="belong to another search"):
        search_context = prepared_of(federating({"rounds": 3}, trials=4, searcher="grid", levels=2))
        run_inline(search_context, folder)
    assert measure(study, work.inputs, work.folder.root)["looks"] == 1
    check_measured(work, prepared_of(study), winner)


def check_measured(work: RunContext, search_context: SearchContext, winner: Trial) -> None:
    folder = work.folder.search
    rows = pd.DataFrame(read_json(folder / "test.json")["rows"])
    assert set(rows["part"]) == {"inner validation", "hold-out", "syn-crc-b"}
    assert rows[rows["part"] == "hold-out"]["n"].max() == len(search_context.held_out)
    table = pd.read_parquet(folder / "final" / winner.name / "predictions.parquet")
    held = table[table["patient"].isin(search_context.held_out)]
    assert set(held["cohort"]) == {"hold-out"}
    assert set(held["role"]) == {"external"}
    assert set(table[table["role"] != "external"]["patient"]) == set(search_context.searched)
    for fold in ("0-0", "0-1"):
        metadata = read_json(folder / "final" / winner.name / "folds" / fold / "facts.json")
        assert set(metadata["clients"]) == {"client-0", "client-1"}
        assert sum(client["n"] for client in metadata["clients"].values()) < len(search_context.searched)


def test_dry_run_counts_rounds(federating: Make) -> None:
    study = federating({"rounds": 7}, trials=6, seeds=2)
    text = describe_search(study, lambda: RunContext(study, RunFolder(Path("unused"))).inputs)
    assert "federation.strategy  " in text
    assert "federation: every trial trains across 2 clients: client-0 (" in text
    assert "6 trials x 2 folds x 2 seeds x 7 rounds x " in text
    assert "measured on two rounds" in text


def test_paths_of_the_section_move_with_the_best_study(tmp_path: Path) -> None:
    settings = Study.model_validate(
        {
            "version": 1,
            "name": "x",
            "cohorts": [{"name": "A", "role": "develop", "clinical": "a.csv", "slides": "s.csv"}],
            "tasks": [{"name": "MSI", "type": "binary", "column": "MSI", "positive": "H"}],
            "federation": {"sites": {"scheme": "institution", "table": "codes.tsv"}},
            "tables": {"rna": {"encoder": {"name": "masked_gene", "folder": "rna"}, "adapter": "adapter"}},
            "features": {"slide_encoder": "pretrained", "slide_encoder_params": {"folder": "model"}},
            "training": {"start": "/abs/model"},
        }
    ).resolved()
    moved = rebase_paths(settings, tmp_path, tmp_path / "runs" / "search")
    assert moved["federation"]["sites"]["table"] == "../../codes.tsv"
    assert settings["federation"]["sites"]["table"] == "codes.tsv"
    rna = moved["tables"]["rna"]
    assert (rna["encoder"]["params"]["folder"], rna["adapter"]) == ("../../rna", "../../adapter")
    assert moved["features"]["slide_encoder_params"]["folder"] == "../../model"
    assert moved["training"]["start"] == "/abs/model"
    genes = settings["tables"]["rna"] | {"encoder": None, "adapter": None, "gene_sets": {"file": "sets.gmt"}}
    other = settings | {"tables": {"rna": genes}, "training": settings["training"] | {"start": "model"}}
    moved = rebase_paths(other, tmp_path, tmp_path / "runs" / "search")
    assert moved["tables"]["rna"]["gene_sets"]["file"] == "../../sets.gmt"
    assert moved["training"]["start"] == "../../model"
    assert rebase_paths(settings | {"federation": None}, tmp_path, tmp_path)["federation"] is None
