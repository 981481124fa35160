"""The frozen encoder stays what it is, nothing is read that is not there, and tasks meet as the mode says."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.encoders.weights import digest
from equipoise.models.modaltune.frozen import FrozenStages, tiles_of
from equipoise.models.slide_encoders.entries import MeanStdParams, RandomTransformerParams
from equipoise.models.slide_encoders.mean_std import MeanStd
from equipoise.models.slide_encoders.protocol import run_encoder
from equipoise.models.slide_encoders.random_transformer import RandomTransformer

MODES = ["joint", "full", "ladder"]


def changed(model, std: float = 0.3):
    """Random weights everywhere, injectors included, so that everything is told to everybody."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(std * torch.randn_like(parameter))
    return model


@torch.no_grad()
def last_state(model, batch, mode: str = "joint"):
    """What the frozen encoder holds behind its last stage."""
    seen = []
    run = model.frozen.run
    model.frozen.run = lambda stages, state: seen.append(run(stages, state)) or seen[-1]
    try:
        model(batch)
    finally:
        del model.frozen.run
    return seen[-1]


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("residual", [False, True])
def test_without_injection_the_class_token_is_that_of_the_plain_encoder(
    make_model, make_batch, mode, residual
) -> None:
    model = make_model(mode=mode, reference_residual=residual).eval()
    batch = make_batch(((5, 1, 1, 1), (3, 0, 1, 0)))
    plain = model.frozen.encoder
    state = last_state(model, batch)
    torch.testing.assert_close(plain.readout(state), run_encoder(plain, tiles_of(batch)), rtol=0, atol=1e-5)
    if mode != "ladder":
        state = last_state(make_model(mode=mode, gamma=0.5).eval(), batch)
        assert (plain.readout(state) - run_encoder(plain, tiles_of(batch))).abs().max() > 1e-2


@pytest.mark.parametrize("mode", MODES)
def test_training_leaves_the_encoder_bit_for_bit(make_model, make_batch, mode) -> None:
    model, batch = make_model(mode=mode).train(), make_batch()
    encoder = model.frozen.encoder
    before = digest(encoder)
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    mine = {id(p) for p in encoder.parameters()}
    assert not mine & {id(p) for p in model.parameters()}
    assert not any(name.startswith("frozen") for name in model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        sum(out.square().sum() for out in model(batch).values()).backward()
        optimizer.step()
    assert digest(encoder) == before
    assert not encoder.training
    assert all(not torch.equal(p, start[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("mode", MODES)
def test_two_predictions_are_the_same(make_model, make_batch, mode) -> None:
    model, batch = make_model(mode=mode, gamma=0.3, drop_path=0.5, modality_dropout=0.5), make_batch()
    model.train().eval()
    first, second = model(batch), model(batch)
    assert all(torch.equal(first[task], second[task]) for task in first)


def test_a_ladder_needs_no_gradient_through_the_encoder(make_model, make_batch) -> None:
    for mode, reaches in (("joint", True), ("ladder", False)):
        assert (last_state_grad(make_model(mode=mode, gamma=0.3), make_batch()) is not None) is reaches


def last_state_grad(model, batch):
    seen = []
    run = model.frozen.run
    model.frozen.run = lambda stages, state: seen.append(run(stages, state)) or seen[-1]
    model(batch)
    return seen[-1].tokens.grad_fn


@torch.no_grad()
@pytest.mark.parametrize("missing", ["token", "mask"])
@pytest.mark.parametrize("mode", MODES)
def test_what_stands_in_an_absent_modality_is_never_read(make_model, make_batch, mode, missing) -> None:
    model, batch = changed(make_model(mode=mode, missing=missing)).eval(), make_batch()
    before = model(batch)
    omics = {
        name: torch.where(batch.present[name][:, None], rows, torch.nan) for name, rows in batch.omics.items()
    }
    bags = torch.where(batch.mask[:, :, None], batch.bags, torch.nan)
    corners = torch.where(batch.mask[:, :, None], batch.corners, 7e5)
    after = model(replace(batch, omics=omics, bags=bags, corners=corners))
    for task in before:
        assert torch.isfinite(before[task]).all()
        assert torch.equal(before[task], after[task])
    changed_rows = {name: rows + 1.0 for name, rows in batch.omics.items()}
    moved = model(replace(batch, omics=changed_rows))["OS"] - before["OS"]
    has_table = torch.stack([*batch.present.values()]).any(0)
    assert torch.equal(moved[:, 0].abs() > 1e-6, has_table)


@torch.no_grad()
@pytest.mark.parametrize("missing", ["token", "mask"])
def test_a_patient_does_not_depend_on_the_batch(make_model, make_batch, missing) -> None:
    model, batch = changed(make_model(missing=missing)).eval(), make_batch()
    together = model(batch)
    for i in range(len(batch)):
        tiles = max(int(batch.mask[i].sum()), 1 if i % 2 else 0)
        one = batch.select(torch.tensor([i]))
        cut = {name: getattr(one, name)[:, :tiles] for name in ("bags", "mask", "coords", "corners")}
        for name, out in model(replace(one, **cut, padded=None)).items():
            torch.testing.assert_close(out[0], together[name][i], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tasks_look_at_each_other_in_one_pass_only(make_model, make_batch) -> None:
    """A pass per task gives what a model of that task alone gives; in one pass the other task's token is seen."""
    batch = make_batch()
    for mode, same in (("full", True), ("joint", False)):
        both = changed(make_model(mode=mode)).eval()
        alone = make_model(mode=mode, heads=(TaskHead("MSI", "binary", 2),)).eval()
        state = both.state_dict()
        state["task_tokens.0"] = state.pop("task_tokens.1")
        for part in ("weight", "bias"):
            state[f"heads.0.{part}"] = state.pop(f"heads.1.{part}")
        alone.load_state_dict(state)
        assert torch.allclose(both(batch)["MSI"], alone(batch)["MSI"], atol=1e-5) is same


@torch.no_grad()
def test_an_embedding_is_the_sum_of_three_parts(make_model, make_batch) -> None:
    """Class token + task token + mean of modal tokens, put together from the parts of the model."""
    model = changed(make_model(blocks=1, missing="mask")).eval()
    batch = make_batch(((4, 1, 1, 0), (2, 0, 1, 0)))
    modal = [model.encoders[name](batch.omics[name]) for name in ("clinical", "rna", "cnv")]
    hidden = torch.cat([(~batch.present[n])[:, None].expand(-1, t.shape[1])
                        for n, t in zip(("clinical", "rna", "cnv"), modal, strict=True)], 1)  # fmt: skip
    modal = torch.cat(modal, 1)
    tasks = [model.task_norm(token + model.task_bias) for token in model.task_tokens]
    c = torch.cat([torch.stack(tasks).expand(2, -1, -1), modal], 1)
    place = torch.cat([model.places[:1], model.places[:1], model.places[1:]])
    block, encoder = model.blocks[0], model.frozen.encoder
    state = encoder.stem(tiles_of(batch))
    keys = torch.cat([torch.zeros(2, 2, dtype=torch.bool), hidden], 1)
    x = block.injector(state.tokens[:, 1:], c, place, keys)
    state = replace(state, tokens=torch.cat([state.tokens[:, :1], x], 1))
    for at in range(encoder.stages):
        state = encoder.run_stage(at, state)
    for extractor in block.extractors:
        c = extractor(c, place, state.tokens[:, 1:], batch.mask)
    assert len(block.extractors) == 3
    for i in range(2):
        mean = torch.stack([row[2:][~gone].mean(0) for row, gone in zip(c, hidden, strict=True)])
        z = model.output(model.output_norm(state.tokens[:, 0] + c[:, i] + mean))
        torch.testing.assert_close(model.pool(batch)[i], z, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_slides_and_without_tables(make_model, make_batch) -> None:
    kinds = ((0, 1, 1, 1), (0, 0, 1, 0))
    batch = make_batch(kinds)
    blank = replace(batch, bags=batch.bags[:, :, :0])
    tables = make_model(CaseShape(0, SHAPE_TABLES)).eval()
    assert tables.frozen is None
    assert tables.frozen_digest() is None
    assert not any("injector" in n or ".attend." in n for n, _ in tables.named_parameters())
    outputs = tables(blank)
    assert {name: tuple(out.shape) for name, out in outputs.items()} == {"OS": (2, 1), "MSI": (2, 2)}
    slides = make_model(CaseShape(6)).eval()
    assert all(torch.isfinite(out).all() for out in slides(make_batch(((4, 0, 0, 0), (2, 0, 0, 0)))).values())
    with pytest.raises(ValueError, match="neither tiles nor tables"):
        make_model(CaseShape(0))


SHAPE_TABLES = {"clinical": 2, "rna": 5, "cnv": 3}


def test_every_parameter_has_one_owner_and_a_gradient(make_model, make_batch) -> None:
    for batch in (make_batch(), make_batch(((0, 1, 1, 1), (0, 0, 1, 0)))):
        model = make_model()
        parts = model.shared_parameters() + [
            p for h in model.task_heads for p in model.task_parameters(h.name)
        ]
        assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))
        sum(out.sum() for out in model(batch).values()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_place_where_tasks_part_is_kept(make_model, make_batch) -> None:
    model = make_model()
    model.representation.kept = True
    outputs = model(make_batch())
    shared = model.representation.take()
    assert shared.shape == (6, 1 + 2 + 5, 16)
    grads = [torch.autograd.grad(out.sum(), shared, retain_graph=True)[0] for out in outputs.values()]
    for i, grad in enumerate(grads):  # a task reads its own token, not the other's
        assert grad[:, 1 + i].abs().sum() > 0
        assert grad[:, 2 - i].abs().sum() == 0


def test_modality_dropout_hides_and_leaves_one(make_model, make_batch) -> None:
    model = make_model(modality_dropout=0.7)
    batch = make_batch(((4, 1, 1, 1), (0, 1, 1, 0), (2, 0, 0, 0)) * 80)
    present = model.eval()._shown(batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shown = model.train()._shown(batch)
    assert not any((shown[name] & ~present[name]).any() for name in shown)
    assert torch.stack(list(shown.values())).any(0).all()
    assert 0.5 < 1 - torch.stack([shown[n][present[n]].float().mean() for n in ("rna", "cnv")]).mean() < 0.75


def test_models_are_copied_and_share_the_encoder(make_model, make_batch) -> None:
    model, batch = changed(make_model()).eval(), make_batch()
    other = copy.deepcopy(model)
    assert other.frozen.encoder is model.frozen.encoder
    assert torch.equal(other(batch)["OS"], model(batch)["OS"])
    assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}


def test_stages_are_cut_into_groups() -> None:
    encoder = partial(RandomTransformer, RandomTransformerParams(width=16, depth=12, heads=1))
    assert FrozenStages(encoder(), 6, 3).groups == [range(4), range(4, 8), range(8, 12)]
    assert FrozenStages(encoder(), 6, 5).groups == [
        range(3),
        range(3, 5),
        range(5, 8),
        range(8, 10),
        range(10, 12),
    ]
    late = FrozenStages(encoder(), 6, 2, 8)
    assert (late.skipped, late.groups) == (range(8), [range(8, 10), range(10, 12)])
    with pytest.raises(ValueError, match="12 stages, of which 2 are left for 3 blocks"):
        FrozenStages(encoder(), 6, 3, 10)
    with pytest.raises(ValueError, match="0 stages, of which 0 are left for 1 blocks"):
        FrozenStages(MeanStd(MeanStdParams()), 6, 1)


@torch.no_grad()
def test_skipped_stages_run_before_anything_is_injected(make_model, make_batch) -> None:
    batch = make_batch(((4, 1, 1, 1),))
    model = make_model(skipped=2, blocks=2, gamma=0.5).eval()
    encoder, state = model.frozen.encoder, model.frozen.stem(batch)
    plain = encoder.stem(tiles_of(batch))
    for at in (0, 1):
        plain = encoder.run_stage(at, plain)
    assert torch.equal(state.tokens, plain.tokens)
    assert not torch.equal(
        last_state(model, batch).tokens, encoder.run_stage(3, encoder.run_stage(2, plain)).tokens
    )


def test_tiles_have_to_lie_somewhere(make_model, make_batch) -> None:
    with pytest.raises(ValueError, match="not known where the tiles lie"):
        make_model()(replace(make_batch(), corners=None))
