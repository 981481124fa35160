"""What holds for every multiple-instance model: interface, masks, several bags per batch."""

from __future__ import annotations

import pytest
import torch

from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.entries import ENTRIES, MeanPoolParams

NAMES = ("MSI", "keys", "L.F", "OS")


def test_shared_and_own_parameters_are_all_parameters_once(model) -> None:
    parts = model.shared_parameters() + [p for name in NAMES for p in model.task_parameters(name)]
    assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))


def test_a_task_reaches_shared_parameters_and_its_own_only(model, bags, batch_of) -> None:
    model.eval()(batch_of(bags(12)))["OS"].sum().backward()
    assert all(p.grad is not None for p in [*model.shared_parameters(), *model.task_parameters("OS")])
    assert all(p.grad is None for name in NAMES[:3] for p in model.task_parameters(name))


def test_latents_are_what_the_heads_read(model, bags, batch_of) -> None:
    batch = batch_of(bags(12, 3))
    latents, outputs = model.eval().latents(batch), model(batch)
    assert {name: tuple(out.shape) for name, out in outputs.items()} == {
        "MSI": (2, 2),
        "keys": (2, 3),
        "L.F": (2, 1),
        "OS": (2, 4),
    }
    assert list(latents) == list(NAMES)
    for name, out in model.outputs(latents).items():
        assert torch.equal(out, outputs[name])


@torch.no_grad()
@pytest.mark.parametrize("fill", [0.0, 1e3])
def test_neither_padding_nor_what_stands_in_it_changes_anything(model, bags, batch_of, fill: float) -> None:
    several = bags(30, 9, 1, 2)
    padded = model.eval()(batch_of(several, padding=6, fill=fill))
    for i, bag in enumerate(several):
        for name, out in model(batch_of([bag])).items():
            torch.testing.assert_close(padded[name][i : i + 1], out, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_case_does_not_depend_on_who_is_beside_it(model, bags, batch_of) -> None:
    first, second, third = bags(20, 11, 25)
    one, other = model.eval()(batch_of([first, second])), model(batch_of([third, second]))
    for name in NAMES:
        torch.testing.assert_close(one[name][1], other[name][1], rtol=1e-5, atol=1e-6)


def test_padding_changes_no_gradient(model, bags, batch_of) -> None:
    model.eval()
    grads = []
    for padding in (0, 5):
        model.zero_grad()
        outputs = model(batch_of(bags(17, 10), padding))
        torch.stack([out.square().sum() for out in outputs.values()]).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_holes_in_the_mask_are_left_out(model, bags, batch_of) -> None:
    (bag,) = bags(15)
    batch = batch_of([bag])
    batch.mask[0, [3, 7]] = False
    holes = type(batch)(**{f: getattr(batch, f) for f in batch.__dataclass_fields__} | {"padded": None})
    kept = torch.cat([bag[:3], bag[4:7], bag[8:]])
    with torch.no_grad():
        for name, out in model.eval()(batch_of([kept])).items():
            torch.testing.assert_close(model(holes)[name], out, rtol=1e-5, atol=1e-6)


def test_another_width_is_refused(model) -> None:
    from equipoise.models.batch import CaseBatch

    wide = CaseBatch(
        torch.zeros(1, 2, 11),
        torch.ones(1, 2, dtype=torch.bool),
        torch.zeros(1, 2, 2),
        {},
        {},
        {},
        {},
        torch.zeros(1, dtype=torch.int64),
    )
    with pytest.raises(ValueError, match="tiles have 11 features, the model was built for 10"):
        model(wide)


def test_unknown_tasks_and_doubled_names_are_refused(make) -> None:
    with pytest.raises(KeyError, match="no task 'HRD'; the model has MSI, keys"):
        make("abmil").task_parameters("HRD")
    for heads in ((), (TaskHead("a", "regression", 1),) * 2):
        with pytest.raises(ValueError, match="at least one task and distinct names"):
            make("mean_pool", heads)


def test_dropout_is_drawn_in_training_only(model, bags, batch_of) -> None:
    batch = batch_of(bags(12))
    model.eval()
    assert torch.equal(model(batch)["MSI"], model(batch)["MSI"])
    model.train()
    drops = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
    assert torch.equal(model(batch)["MSI"], model(batch)["MSI"]) is not drops


@torch.no_grad()
def test_mean_pool_without_layers_is_a_linear_map_of_the_mean(make, bags, batch_of) -> None:
    model, several = make("mean_pool linear").eval(), bags(7, 3)
    head = model.heads[0]
    expected = torch.stack([bag.mean(dim=0) for bag in several]) @ head.weight.T + head.bias
    torch.testing.assert_close(model(batch_of(several))["MSI"], expected)
    assert model.shared_parameters() == []


@pytest.mark.parametrize("name", ["mean_pool", "abmil", "transmil", "joint"])
def test_entries_build_their_model_which_reads_slides(name: str) -> None:
    from importlib import import_module

    _, params, where = ENTRIES[name]
    module, attribute = where.split(":")
    small = {"dim": 12, "heads": 3} if name == "joint" else {"dim": 16}
    model = getattr(import_module(module), attribute)(
        params(**small), CaseShape(5), [TaskHead("a", "binary", 2)]
    )
    assert params.reads == {"wsi"}
    assert "reads" not in params().model_dump()
    assert model.task_parameters("a")


def test_layers_of_mean_pool_are_counted() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        MeanPoolParams(layers=-1)


def test_mixed_precision_is_close_to_full(model, bags, batch_of) -> None:
    batch = batch_of(bags(30, 9))
    full = model.eval()(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(batch)
        torch.stack([out.float().square().sum() for out in mixed.values()]).sum().backward()
    for name, out in full.items():
        torch.testing.assert_close(mixed[name].float(), out, rtol=0.05, atol=0.05)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
