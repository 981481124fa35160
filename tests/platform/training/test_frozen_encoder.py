"""A slide encoder inside a model: every training path keeps it, and a fold belongs to its weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from equipoise.datasets.cohorts.places import corners_um
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.omics.params import TableParams
from equipoise.models.batch import TaskHead
from equipoise.models.entries import ModalTuneParams
from equipoise.models.slide_encoders.entries import RandomTransformerParams
from equipoise.models.slide_encoders.random_transformer import RandomTransformer
from equipoise.models.slide_encoders.state_encoding import encode_states
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.federation.standardisation import federated_targets
from equipoise.platform.training import checkpoint as checkpoints
from equipoise.platform.training.batches import CaseList, collate, draw_tiles
from equipoise.platform.training.build import build_model
from equipoise.platform.training.crossval import load_fold, train_fold
from equipoise.platform.training.params import BalancingParams, Recipe, TrainingParams
from equipoise.platform.training.targets import fit_targets

HEADS = (TaskHead("LF", "regression", 1),)
SMALL = {
    "slide_encoder_params": {"width": 16, "depth": 3, "heads": 2},
    "bottleneck": 8,
    "attention_heads": 2,
    "dim": 16,
    "embedding": 8,
    "rna_params": {"hidden": 4, "tokens": 2},
}


def recipe(balancing: str = "equal", **params) -> Recipe:
    training = TrainingParams(epochs=2, lr=1e-2, batch=4, device="cpu", members=params.pop("members", 1))
    return Recipe(
        model="modaltune",
        model_params=SMALL | params,
        training=training,
        balancing=BalancingParams.model_validate(balancing),
        seed=3,
    )


@pytest.fixture
def cases(make_cases):
    return {
        patient: replace(case, mpp=(0.5,), extent=112.0)
        if i % 6
        else replace(
            case,
            bag=case.bag[:0],
            coords=case.coords[:0],
            slides=(),
            tiles=(),
            omics={"rna": np.ones(3, np.float32)},
        )
        for i, (patient, case) in enumerate(make_cases(20).items())
    }


@pytest.fixture
def fold(cases) -> Fold:
    people = tuple(cases)
    return Fold(0, 0, people[:10], people[10:15], people[15:])


def trained(fold, tasks, cases, folder, made):
    keys = dict.fromkeys(cases, "")
    return train_fold(fold, tasks, cases, made, folder, features="abc", content_keys=keys)


@pytest.mark.parametrize(
    ("balancing", "params"),
    [
        ("uncertainty+pcgrad", {"mode": "joint", "modality_dropout": 0.3}),
        ("equal+cagrad", {"mode": "full", "missing": "mask"}),
        ("equal", {"mode": "ladder"}),
        ("equal", {"modalities": ("rna",)}),
        ("equal", {"members": 2, "skipped": 1, "blocks": 2}),
    ],
)
def test_a_fold_trains_predicts_and_loads(fold, tasks, cases, tmp_path, balancing, params) -> None:
    """Every set of modalities and every mode, training and evaluation; nothing of the encoder is stored."""
    if params.get("modalities") == ("rna",):
        none = {
            "bag": np.empty((0, 0), np.float16),
            "coords": np.empty((0, 2), np.int32),
            "tiles": (),
            "slides": (),
        }
        rna = {p: c.omics.get("rna", np.zeros(3, np.float32)) for p, c in cases.items()}
        cases = {p: replace(c, **none, omics={"rna": rna[p]}) for p, c in cases.items()}
    folder = trained(fold, tasks, cases, tmp_path, recipe(balancing, **params))
    loaded = load_fold(folder)
    table, _ = loaded.predict_with_latents(CaseList(cases, fold.test), "test")
    assert np.isfinite(table.select_dtypes("number").to_numpy(float)).any()
    assert set(table["patient"]) == set(fold.test)
    stored = load_file(folder / "model.safetensors")
    assert not any(name.endswith(("qkv", "cls_token")) for name in stored)
    assert ("frozen" in loaded.config) is ("modalities" not in params)


def with_states(cases, **params):
    """The cases as a reader with a store of states gives them."""
    kept = ModalTuneParams.model_validate(SMALL | params).hidden_states
    encoder = RandomTransformer(RandomTransformerParams(**SMALL["slide_encoder_params"]))
    found = {}
    for patient, case in cases.items():
        corners = corners_um(case.coords, case.tiles, case.mpp, case.extent)
        states, counts = (
            encode_states(encoder, kept, case.bag, corners, case.extent) if len(case.bag) else (None, None)
        )
        found[patient] = replace(case, states=states, state_counts=counts)
    return found


@pytest.mark.parametrize(
    "params",
    [
        {"mode": "ladder", "cache": True},
        {"mode": "joint", "cache": True, "skipped": 1, "blocks": 2},
        {"mode": "ladder", "cache": True, "prototypes": 99},
    ],
)
def test_a_fold_on_stored_states_is_that_on_tiles(fold, tasks, cases, tmp_path, params) -> None:
    """To the precision of float16; with fewer tiles than prototypes, those change nothing."""
    tables = {}
    for name, own in (
        ("tiles", {key: value for key, value in params.items() if key != "prototypes"}),
        ("states", params),
    ):
        source = cases if name == "tiles" else with_states(cases, **own)
        folder = trained(fold, tasks, source, tmp_path / name, recipe(**own))
        tables[name] = pd.read_parquet(folder / "preds.parquet")
    columns = ["patient", "task", "class"]
    assert tables["tiles"][columns].equals(tables["states"][columns])
    scale = tables["tiles"].groupby("task")["score"].transform("std")
    apart = (tables["tiles"]["score"] - tables["states"]["score"]).abs() / scale
    assert 0 < apart.max() < 0.02


def test_states_are_read_by_models_that_ask_for_them_alone(fold, tasks, cases) -> None:
    """Others get the tiles; drawn tiles keep their tokens; prototypes are never drawn from."""
    targets = fit_targets(tasks, CaseList(cases, fold.train))
    patients = [p for p in fold.train if len(cases[p].bag) > 4][:2]
    plain = collate([cases[p] for p in patients], targets)
    stored = with_states(cases, mode="ladder", cache=True)
    both = [stored[p] for p in patients]
    assert torch.equal(collate(both, targets).bags, plain.bags)
    assert collate(both, targets).states is None
    batch = collate(both, targets, states=True)
    assert batch.bags.shape == plain.bags.shape
    assert not batch.bags.any()
    for i, case in enumerate(both):
        assert torch.equal(batch.states[i, : len(case.states)], torch.from_numpy(case.states.copy()))
        assert batch.state_counts[i].tolist() == [1.0] * len(case.states) + [0.0] * int(
            (~batch.mask[i]).sum()
        )
    rows = np.array([0, 3])
    drawn = collate(both, targets, [rows, None], states=True)
    assert torch.equal(drawn.states[0, :3], batch.states[0, [0, 1, 4]])
    assert drawn.state_counts[0].sum() == 3
    for count in (2, len(both[0].bag) - 1):
        few = with_states(cases, mode="ladder", cache=True, prototypes=count)
        assert collate([few[patients[0]]], targets, [rows], states=True).states.shape[1] == 1 + count
    mixed = collate([both[0], cases[patients[1]]], targets, states=True)
    assert mixed.states is None
    assert torch.equal(mixed.bags, plain.bags)


def test_pathways_of_a_study_survive_the_folder(fold, tasks, cases, tmp_path) -> None:
    """Columns of sets are those of the fitted table; a loaded fold is built with them."""
    cases = {p: replace(c, columns={"rna": ("A", "B", "C")}) for p, c in cases.items()}
    sets = {"low": ["A", "X"], "none": ["Y", "X"], "both": ["C", "A"]}
    tables = TableParams.model_validate({"rna": {"gene_sets": {"sets": sets}}})
    made = recipe(rna="pathways", rna_params={"hidden": 4, "tokens": 2, "mixer_layers": 1})
    folder = trained(fold, tasks, cases, tmp_path, made.model_copy(update={"tables": tables}))
    loaded = load_fold(folder)
    assert loaded.targets.tables["rna"].names == ("A", "C")
    assert loaded.targets.shape.sets == {"rna": ((0,), (1, 0))}
    scores = {"rna": {"gene_sets": {"sets": sets, "use": "scores"}}}
    train = CaseList(cases, fold.train)
    assert fit_targets(tasks, train, tables=TableParams.model_validate(scores)).shape.sets == {}
    assert fit_targets(tasks, train).shape.sets == {}
    with pytest.raises(StudyError, match="need gene sets of the rna table"):
        build_model("modaltune", made.model_params, fit_targets(tasks, train).shape, HEADS, seed=0)


@pytest.mark.parametrize("kind", ["modaltune", "concat"])
def test_dropout_balanced_by_class_is_fitted_and_survives_the_folder(
    fold, tasks, cases, tmp_path, kind
) -> None:
    """Shares are those of the training patients; a model that does not ask for them stores none."""
    own = SMALL if kind == "modaltune" else {"dim": 4, "hidden": 4}
    made = recipe().model_copy(update={"model": kind, "model_params": own | {"class_balanced_dropout": True}})
    assert made.needs_presence
    loaded = load_fold(trained(fold, tasks, cases, tmp_path, made))
    wanted = {}
    for name, has in (("wsi", lambda c: len(c.bag) > 0), ("rna", lambda c: "rna" in c.omics)):
        groups = [[cases[p] for p in fold.train if cases[p].targets["MSI"] == k] for k in (0, 1)]
        wanted[name] = tuple(sum(map(has, group)) / len(group) for group in groups)
    for name, shares in wanted.items():
        assert loaded.targets.shape.presence[name] == pytest.approx(shares)
    sites = {"A": CaseList(cases, fold.train[:5]), "B": CaseList(cases, fold.train[5:])}
    apart = federated_targets(tasks, sites, presence=True, min_n=1)
    assert apart.shape.presence == loaded.targets.shape.presence
    assert fit_targets(tasks, CaseList(cases, fold.train)).shape.presence == {}
    with pytest.raises(DataError, match="the main task, which has none"):
        fit_targets(tasks[2:3], CaseList(cases, fold.train), presence=True)


def test_tokens_of_what_is_hidden_are_learned(fold, tasks, cases) -> None:
    """Where everybody has everything, the learned tokens of missing modalities get gradients from dropout alone."""
    everything = {p: c for p, c in cases.items() if len(c.bag) and "rna" in c.omics}
    targets = fit_targets(tasks, CaseList(everything, tuple(everything)), presence=True)
    shape = replace(targets.shape, presence={"wsi": (1.0, 0.5), "rna": (0.4, 1.0)})
    batch = collate(list(everything.values()), targets)
    for changes, learned in (({"class_balanced_dropout": True}, True), ({}, False)):
        model = build_model("modaltune", SMALL | changes, shape, targets.heads, seed=0)
        assert model.hides_modalities is learned
        torch.manual_seed(1)
        sum(out.square().sum() for out in model.train()(batch).values()).backward()
        for name in ("wsi", "rna"):
            assert bool(model.tokens[name].grad.abs().sum() > 0) is learned, name


def test_balancing_where_tasks_part(fold, tasks, cases, tmp_path) -> None:
    made = recipe({"weighting": "equal", "aggregation": "cagrad", "at": "representation"})
    assert (trained(fold, tasks, cases, tmp_path, made) / "model.safetensors").exists()


def test_folds_and_checkpoints_belong_to_the_weights_of_the_encoder(
    fold, tasks, cases, tmp_path, monkeypatch
) -> None:
    folder = trained(fold, tasks, cases, tmp_path, recipe())
    targets = fit_targets(tasks, CaseList(cases, fold.train))
    lists = CaseList(cases, fold.train), CaseList(cases, fold.val)

    def fingerprint():
        model = build_model("modaltune", SMALL, targets.shape, targets.heads, seed=1)
        return checkpoints.training_fingerprint(
            model, targets, *lists, TrainingParams(), BalancingParams(), 0
        )

    before, init = fingerprint(), RandomTransformer.__init__
    load_fold(folder)

    def other(self, params) -> None:
        init(self, params)
        self.cls_token.data += 1e-3

    monkeypatch.setattr(RandomTransformer, "__init__", other)
    with pytest.raises(DataError, match="other weights of the frozen part"):
        load_fold(folder)
    assert fingerprint() != before


def test_an_encoder_that_changes_during_training_is_an_error(
    fold, tasks, cases, tmp_path, monkeypatch
) -> None:
    run_stage = RandomTransformer.run_stage

    def drifting(self, at, state):
        if torch.is_grad_enabled():
            self.cls_token.data += 1e-3
        return run_stage(self, at, state)

    monkeypatch.setattr(RandomTransformer, "run_stage", drifting)
    with pytest.raises(RuntimeError, match="frozen slide encoder have changed"):
        trained(fold, tasks, cases, tmp_path, recipe())


def test_what_does_not_fit_names_the_parameter(tasks, cases, fold) -> None:
    targets = fit_targets(tasks, CaseList(cases, fold.train))
    for params, words in (
        ({"blocks": 5}, "3 stages, of which 3 are left for 5 blocks"),
        ({"slide_encoder": "mean_std", "slide_encoder_params": {}}, "0 stages, of which 0 are left"),
        ({"slide_encoder": "gigapath_slide", "slide_encoder_params": {"weights": "/nowhere"}}, "nowhere"),
    ):
        with pytest.raises((StudyError, FileNotFoundError), match=words):
            build_model("modaltune", SMALL | params, targets.shape, targets.heads, seed=0)


def test_a_batch_says_where_tiles_lie(tasks, cases, fold) -> None:
    """Drawn tiles keep their places, in um, and those of several slides are apart."""
    patient = next(p for p in fold.train if len(cases[p].bag) > 3)
    case = cases[patient]
    two = replace(case, slides=("a", "b"), tiles=(2, len(case.bag) - 2), mpp=(0.5, 0.25))
    targets = fit_targets(tasks, CaseList(cases, fold.train))
    rows = draw_tiles(len(two.bag), 3, 0, 0, patient)
    assert rows is not None
    batch, drawn = collate([two], targets), collate([two], targets, [rows])
    assert torch.equal(drawn.corners, batch.corners[:, rows])
    assert batch.extent.tolist() == [112.0]
    step = (batch.corners[0, 1] - batch.corners[0, 0]).numpy()
    np.testing.assert_allclose(step, (case.coords[1] - case.coords[0]) * 0.5)
    assert batch.corners[0, 2:, 1].min() >= batch.corners[0, :2, 1].max() + 112
    assert collate([replace(case, mpp=())], targets).corners is None


def test_steps_see_as_many_patients_as_they_say(fold, tasks, cases, monkeypatch, tmp_path) -> None:
    """All training patients in every epoch, in batches of the size that the study names."""
    from equipoise.models.modaltune.model import ModalTune

    seen, forward = [], ModalTune.forward

    def noted(self, batch):
        if self.training:
            seen.append(len(batch))
        return forward(self, batch)

    monkeypatch.setattr(ModalTune, "forward", noted)
    made = recipe()
    trained(fold, tasks, cases, tmp_path, made)
    size = made.training.batch_for(fit_targets(tasks, CaseList(cases, fold.train)).heads, len(fold.train))
    assert len(seen) % 2 == 0
    assert sum(seen) == 2 * len(fold.train)
    assert max(seen) == size
