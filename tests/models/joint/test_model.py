"""The joint transformer: size, invariances, interface."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import JointParams
from equipoise.models.joint.model import JointTransformer
from equipoise.models.losses import TaskLosses

TINY = JointParams(dim=24, heads=3, feedforward=32, dropout=0.1)
HEADS = (
    TaskHead("MSI", "binary", 2, main=True),
    TaskHead("keys", "multiclass", 3),  # a name that a module dictionary would refuse
    TaskHead("L.F", "regression", 1),
    TaskHead("OS", "survival", 1),
)
GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "joint_losses.json"


def batch_of(bags: list[torch.Tensor], padding: int = 0) -> CaseBatch:
    most = max(len(bag) for bag in bags) + padding
    x = torch.zeros(len(bags), most, bags[0].shape[1])
    mask = torch.zeros(len(bags), most, dtype=torch.bool)
    for i, bag in enumerate(bags):
        x[i, : len(bag)], mask[i, : len(bag)] = bag, True
    site = torch.zeros(len(bags), dtype=torch.int64)
    return CaseBatch(x, mask, torch.zeros(len(bags), most, 2), {}, {}, {}, {}, site)


def tiny(seed: int = 0, heads: tuple[TaskHead, ...] = HEADS, features: int = 10) -> JointTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return JointTransformer(TINY, CaseShape(features), heads)


def draw(*sizes: int, seed: int = 0, features: int = 10) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(n, features, generator=rng) for n in sizes]


def test_reference_variant_has_the_published_number_of_parameters() -> None:
    heads = (TaskHead("cls", "binary", 2), TaskHead("rgr", "regression", 5))
    model = JointTransformer(JointParams(), CaseShape(768), heads)
    own = [p for head in heads for p in model.task_parameters(head.name)]
    assert sum(p.numel() for p in model.parameters()) == 6_218_503
    assert (
        sum(p.numel() for p in model.shared_parameters()) == 6_215_808 - 2 * 384
    )  # that figure counts the tokens
    assert sum(p.numel() for p in own) == 2 * 384 + 385 * 7


def test_shared_and_own_parameters_are_all_parameters_once() -> None:
    model = tiny()
    parts = model.shared_parameters() + [p for head in HEADS for p in model.task_parameters(head.name)]
    assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(KeyError, match="no task 'HRD'; the model has MSI, keys"):
        tiny().task_parameters("HRD")


def test_a_task_reaches_shared_parameters_and_its_own_only() -> None:
    model = tiny().eval()
    model(batch_of(draw(5)))["OS"].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.task_parameters("OS")[:2])
    assert all(p.grad is not None for p in model.shared_parameters())
    # The head of another task gets nothing; its token does, through attention among tokens, as published.
    assert all(p.grad is None for p in model.task_parameters("MSI")[1:])


def test_outputs_have_the_widths_of_the_heads() -> None:
    outputs = tiny().eval()(batch_of(draw(5, 3)))
    assert {name: tuple(out.shape) for name, out in outputs.items()} == {
        "MSI": (2, 2),
        "keys": (2, 3),
        "L.F": (2, 1),
        "OS": (2, 1),
    }


def test_latents_are_what_the_heads_read() -> None:
    model, batch = tiny().eval(), batch_of(draw(5, 3))
    latents = model.latents(batch)
    assert {tuple(latent.shape) for latent in latents.values()} == {(2, 24)}
    for name, out in model(batch).items():
        torch.testing.assert_close(model.outputs(latents)[name], out)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model, bags = tiny().eval(), draw(9, 4, 1)
    padded = model(batch_of(bags, padding=6))
    for i, bag in enumerate(bags):
        alone = model(batch_of([bag]))
        for name, out in alone.items():
            torch.testing.assert_close(padded[name][i : i + 1], out, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_what_stands_in_the_padding_is_never_read() -> None:
    model, batch = tiny().eval(), batch_of(draw(9, 4))
    before = model(batch)
    batch.bags[1, 4:] = 1e3
    assert before
    for name, out in model(batch).items():
        assert torch.equal(out, before[name])


def test_padding_changes_no_gradient() -> None:
    model, bags = tiny().eval(), draw(7, 3)
    grads = []
    for padding in (0, 5):
        model.zero_grad()
        torch.stack([out.square().sum() for out in model(batch_of(bags, padding)).values()]).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])  # type: ignore[union-attr]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_case_is_a_set_of_tiles() -> None:
    model, (bag,) = tiny().eval(), draw(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = model(batch_of([bag[order]]))
    for name, out in model(batch_of([bag])).items():
        torch.testing.assert_close(shuffled[name], out, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_tiles_matter() -> None:
    model, (one, other) = tiny().eval(), draw(6, 6)
    assert all(
        (a != b).all()
        for a, b in zip(model(batch_of([one])).values(), model(batch_of([other])).values(), strict=True)
    )


@torch.no_grad()
def test_a_forward_pass_leaves_no_state_behind() -> None:
    model, batch = tiny().eval(), batch_of(draw(5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = model(batch)
    model(batch_of(draw(8, seed=3)))
    model.latents(batch_of(draw(2, seed=4)))
    assert first
    for name, out in model(batch).items():
        assert torch.equal(out, first[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tiles_of_another_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match="tiles have 11 features, the model was built for 10"):
        tiny()(batch_of(draw(3, features=11)))


@pytest.mark.parametrize("heads", [(), (HEADS[0], HEADS[0])])
def test_tasks_must_have_distinct_names(heads: tuple[TaskHead, ...]) -> None:
    with pytest.raises(ValueError, match="at least one task and distinct names"):
        tiny(heads=heads)


def train_losses(steps: int = 12) -> list[list[float]]:
    """A few steps on fixed data, all four kinds of task: what the golden file pins."""
    model, losses = tiny(seed=7), TaskLosses(HEADS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    bags = draw(6, 4, 5, 3, 6, 2, seed=7)
    batch = batch_of([bag + i % 2 for i, bag in enumerate(bags)])
    signal = torch.arange(6) % 2
    targets = {
        "MSI": signal.float(),
        "keys": (torch.arange(6) % 3).float(),
        "L.F": signal * 0.8 + 0.1,
        "OS": torch.stack([10.0 - 5 * signal, torch.tensor([1.0, 1, 0, 1, 1, 1])], dim=1),
    }
    mask = {name: torch.ones(6, dtype=torch.bool) for name in targets}
    mask["L.F"][2] = False
    seen = []
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for _ in range(steps):
            means = losses(model(batch), targets, mask).means()
            optimizer.zero_grad()
            means.sum().backward()
            optimizer.step()
            seen.append(means.tolist())
    return seen


def test_losses_are_the_golden_ones() -> None:
    """Proof that a change that should not alter results did not; the tolerance allows for other kernels."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["tasks"] == [head.name for head in HEADS]
    torch.testing.assert_close(
        torch.tensor(train_losses()), torch.tensor(golden["losses"]), rtol=0.02, atol=0.01
    )
