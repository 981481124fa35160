"""Branches, tokens for what is missing, heads, and which parameter belongs to what."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.gptomic.entries import FUSIONS, MODULATIONS

FUSED = list(FUSIONS)


@pytest.mark.parametrize("fusion", FUSED)
@pytest.mark.parametrize("image", ["mean_pool", "abmil", "joint", "transmil"])
def test_every_patient_is_predicted_whatever_is_missing(make_model, make_batch, fusion, image) -> None:
    outputs = make_model(fusion, image=image).eval()(make_batch())
    assert {name: tuple(out.shape) for name, out in outputs.items()} == {"OS": (6, 1), "MSI": (6, 2)}
    assert all(torch.isfinite(out).all() for out in outputs.values())


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSED)
def test_what_stands_in_an_absent_modality_is_never_read(make_model, make_batch, fusion) -> None:
    model, batch = make_model(fusion).eval(), make_batch()
    before = model.forward_with_branches(batch)
    filled = {
        name: torch.where(batch.present[name][:, None], rows, torch.full_like(rows, 50.0))
        for name, rows in batch.omics.items()
    }
    bags = torch.where(batch.mask[:, :, None], batch.bags, torch.full_like(batch.bags, 50.0))
    after = model.forward_with_branches(replace(batch, omics=filled, bags=bags))
    for task, out in before.outputs.items():
        assert torch.equal(out, after.outputs[task])
        for name, score in before.scores[task].items():
            assert torch.equal(score, after.scores[task][name])


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSED)
def test_a_patient_does_not_depend_on_the_batch(make_model, make_batch, fusion) -> None:
    model, batch = make_model(fusion).eval(), make_batch()
    together = model(batch)
    for i in range(len(batch)):
        tiles = max(int(batch.mask[i].sum()), 1 if i % 2 else 0)
        one = batch.select(torch.tensor([i]))
        one = replace(
            one, bags=one.bags[:, :tiles], mask=one.mask[:, :tiles], coords=one.coords[:, :tiles], padded=None
        )
        for name, out in model(one).items():
            torch.testing.assert_close(out[0], together[name][i], rtol=1e-5, atol=1e-6)


def test_presence_is_that_of_the_branch(make_model, make_batch) -> None:
    present = make_model().eval().forward_with_branches(make_batch()).present
    assert present["image"].tolist() == [True, True, False, True, False, False]
    assert present["omics"].tolist() == [True, True, True, False, True, False]
    assert present["clinical"].tolist() == [True, False, True, True, False, True]


@torch.no_grad()
@pytest.mark.parametrize(
    ("fusion", "params"), [("concat", {}), ("late", {}), ("late", {"train": "together"})]
)
def test_the_prediction_is_the_sum_of_the_terms_of_branches(make_model, make_batch, fusion, params) -> None:
    forward = make_model(fusion, fusion_params=params).eval().forward_with_branches(make_batch())
    for task, out in forward.outputs.items():
        assert set(forward.scores[task]) == {"image", "omics", "clinical"}
        torch.testing.assert_close(sum(forward.scores[task].values()), out)


@torch.no_grad()
def test_the_published_equation(make_model, make_batch) -> None:
    """θ = W^G G + W^P P + b, G and P computed by the branches' modules alone."""
    shape = CaseShape(6, {"rna": 5, "cnv": 3, "mutation": 2})
    model = make_model(shape=shape, heads=(TaskHead("OS", "survival", 1),)).eval()
    batch = make_batch(((4, 0, 1, 1, 1), (2, 0, 1, 1, 1)))
    image, omics = model.learned["image"], model.learned["omics"]
    p = image.model.pool(batch)[0]
    row = torch.cat([batch.omics["cnv"], batch.omics["mutation"], torch.zeros(2, 2)], dim=1)
    g = omics.mlp(torch.cat([omics.snn(row), batch.omics["rna"]], dim=1))
    head = model.heads[0]
    expected = p @ head.weight[:, : p.shape[1]].T + g @ head.weight[:, p.shape[1] :].T + head.bias
    torch.testing.assert_close(model(batch)["OS"], expected)


def test_late_fusion_apart_gives_no_gradient_of_the_fused_loss_to_a_branch(make_model, make_batch) -> None:
    for train, moves in (("apart", False), ("together", True)):
        model = make_model("late", fusion_params={"train": train}).eval()
        model(make_batch())["OS"].sum().backward()
        for parameters in model.branches().values():
            assert any(p.grad is not None and bool(p.grad.any()) for p in parameters) is moves
        assert bool(model.heads[0].weight.grad.any())


@pytest.mark.parametrize("fusion", ["kronecker", "attention"])
def test_heads_that_look_on_do_not_move_their_branch(make_model, make_batch, fusion) -> None:
    model = make_model(fusion).eval()
    own = model.forward_with_branches(make_batch()).own
    assert set(own) == {"image", "omics"}
    sum(out.sum() for scores in own.values() for out in scores.values()).backward()
    assert all(p.grad is None for parameters in model.branches().values() for p in parameters)
    assert all(p.grad is not None for p in model.own_heads.parameters())
    attached = make_model(fusion, "aux_losses").eval()
    own = attached.forward_with_branches(make_batch()).own
    sum(out.sum() for scores in own.values() for out in scores.values()).backward()
    assert all(any(p.grad is not None for p in ps) for ps in attached.branches().values())


@pytest.mark.parametrize("image", ["abmil", "joint"])
@pytest.mark.parametrize("fusion", FUSED)
@pytest.mark.parametrize("modulation", [("none", {}), ("aux_losses", {}), ("aux_losses", {"enter": "tasks"})])
def test_every_parameter_has_one_owner(make_model, image, fusion, modulation) -> None:
    model = make_model(fusion, modulation[0], image, modulation_params=modulation[1])
    names = [head.name for head in (*model.task_heads, *model.branch_heads())]
    parts = model.shared_parameters() + [p for name in names for p in model.task_parameters(name)]
    assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))
    branches = model.branches()
    assert set(branches) == {"image", "omics"}
    heads = {
        id(p) for p in [*model.heads.parameters(), *model.own_heads.parameters(), *model.fusion.parameters()]
    }
    assert not heads & {id(p) for parameters in branches.values() for p in parameters}
    if modulation[1]:
        assert names == ["OS", "MSI", "OS@image", "MSI@image", "OS@omics", "MSI@omics"]


def test_branches_are_what_the_data_have(make_model) -> None:
    assert set(make_model(shape=CaseShape(0, {"rna": 5})).learned) == {"omics"}
    assert set(make_model(shape=CaseShape(6, {"clinical": 2})).learned) == {"image"}
    with pytest.raises(ValueError, match="needs slides or a table of rna, cnv or mutation"):
        make_model(shape=CaseShape(0, {"clinical": 2}))


def test_what_does_not_fit_is_refused(make_model) -> None:
    with pytest.raises(ValueError, match="equation of Cox's model over a sum of two terms"):
        make_model(modulation_params={"ratio": "as_printed"})
    with pytest.raises(ValueError, match="teacher 'omics' is no branch of this data; branches are image"):
        make_model(modulation="rank_distillation", shape=CaseShape(6))


def test_modality_dropout_hides_branches_and_leaves_one(make_model, make_batch) -> None:
    model = make_model(modulation="modality_dropout", modulation_params={"rate": 0.7})
    batch = make_batch(((4, 1, 1, 1, 1), (0, 1, 1, 1, 0), (2, 1, 0, 0, 0), (0, 1, 0, 0, 0)) * 60)
    present = model.eval()._shown(batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shown = model.train()._shown(batch)
    both, any_present = present["image"] & present["omics"], present["image"] | present["omics"]
    assert not any((shown[name] & ~present[name]).any() for name in shown)
    assert torch.equal(shown["image"] | shown["omics"], any_present)
    hidden = 1 - torch.stack([shown[name][both].float() for name in shown]).mean()
    assert 0.35 < hidden <= 0.5  # of two, one stays: at most half are hidden


@pytest.mark.parametrize("modulation", list(MODULATIONS))
def test_models_are_copied(make_model, make_batch, modulation) -> None:
    model, batch = make_model("kronecker", modulation).eval(), make_batch()
    expected = model(batch)["OS"]
    other = copy.deepcopy(model)
    assert torch.equal(other(batch)["OS"], expected)
    own = {id(p) for p in other.parameters()}
    assert all(id(p) in own for head in other.task_heads for p in other.task_parameters(head.name))


def test_heads_of_late_fusion_start_as_a_plain_sum(make_model, make_batch) -> None:
    model, batch = make_model("late", shape=CaseShape(6, {"rna": 5})).eval(), make_batch()
    forward = model.forward_with_branches(batch)
    plain = sum(torch.where(forward.present[n][:, None], own["OS"], 0) for n, own in forward.own.items())
    torch.testing.assert_close(forward.outputs["OS"], plain + model.heads[0].bias)
