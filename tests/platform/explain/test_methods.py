"""Attribution methods against closed forms, finite differences in float64 and each other."""

import numpy as np
import pytest
import torch
from scipy.special import logit
from tests.platform.explain.cases import MODELS, TASKS, Dot, batch_of, explained, output, targets

from equipoise.models.base import attention_of
from equipoise.platform.errors import StudyError
from equipoise.platform.explain.attribution import Method
from equipoise.platform.explain.explained import Explained
from equipoise.platform.explain.gradients import integrated_gradients
from equipoise.platform.explain.outputs import explained_outputs
from equipoise.platform.registry import entries
from equipoise.platform.training.predict import task_scores

ZERO = {"baseline": "zero"}


def scores(name: str, case: Explained, **params: object) -> np.ndarray:
    return Method.named(name, params).attribution.scores(case).detach().double().numpy()


def test_the_explained_number_is_that_of_the_predictions_table() -> None:
    """Log odds of the table's probabilities; values and risks as they stand there."""
    rng = np.random.default_rng(1)
    of = targets(1)
    for task in TASKS:
        out = torch.from_numpy(rng.normal(0, 2, (6, task.head.outputs)))
        table = task_scores(task, out)
        for k, explained_output in enumerate(explained_outputs(of, task.head.name)):
            expected = logit(table[:, k]) if task.classes else table[:, 0]
            np.testing.assert_allclose(
                explained_output.of({task.head.name: out}), expected, rtol=1e-9, atol=1e-12
            )


def test_the_log_odds_of_a_class_ignore_what_all_logits_share() -> None:
    out = torch.randn(4, 3, dtype=torch.float64)
    (_, second, _) = explained_outputs(targets(1), "subtype")
    torch.testing.assert_close(second.of({"subtype": out}), second.of({"subtype": out + 7}))


def test_contributions_to_a_linear_model_are_known_exactly() -> None:
    """f = w . mean(x): a tile contributes w . (x_i - b) / N, and leaving it out changes f by (f_i - f) / (N - 1)."""
    w = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    case = Explained(Dot(w), batch_of(8, 3), output())
    x, n = case.batch.bags[0].numpy(), 8
    own = x @ w.numpy()
    for name in ("gradient_input", "integrated_gradients"):
        np.testing.assert_allclose(scores(name, case, **ZERO), own / n, rtol=1e-12)
        np.testing.assert_allclose(scores(name, case), (own - own.mean()) / n, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(scores("occlusion", case), (own - own.mean()) / (n - 1), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(scores("single_tile", case), own - own.mean(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_equal_finite_differences(kind: str) -> None:
    case = explained(kind, tiles=6)
    x = case.batch.bags
    _, found = case.gradients({"wsi": x})
    step = 1e-3 if kind == "modaltune" else 1e-6  # its frozen encoder computes in float32
    for i, d in ((0, 0), (3, 2), (5, 3)):
        moved = x.repeat(2, 1, 1)
        moved[0, i, d] += step
        moved[1, i, d] -= step
        up, down = case.value(case.repeated({"wsi": moved})).tolist()
        assert found["wsi"][0, i, d] == pytest.approx(
            (up - down) / (2 * step), rel=2e-3 if kind == "modaltune" else 1e-4, abs=1e-8
        )


NAMES = [task.head.name for task in TASKS]


@pytest.mark.parametrize(
    ("kind", "task"),
    [*(("abmil", name) for name in NAMES), *((kind, NAMES[i % 5]) for i, kind in enumerate(MODELS))],
)
def test_integrated_gradients_sum_to_the_change_of_the_output(kind: str, task: str) -> None:
    """Along a path on which every model is smooth; tables go along with tiles where the model reads both."""
    case = explained(kind, task)
    inputs = {"wsi": case.batch.bags, **case.batch.omics}
    start = {name: 0.8 * x for name, x in inputs.items()}
    found = integrated_gradients(case, inputs, start, 24)
    change = float(case.value() - case.value(case.repeated(start)))
    total = sum(float(part.sum()) for part in found.values())
    size = sum(float(part.abs().sum()) for part in found.values())
    assert size > 0
    assert total == pytest.approx(change, abs=5e-3 * size)


def test_the_method_sums_to_its_own_difference() -> None:
    for task in NAMES:
        case = explained("abmil", task)
        for baseline in ("zero", "slide_mean"):
            method = Method.named("integrated_gradients", {"steps": 64, "baseline": baseline})
            found = method.attribution.scores(case)
            expected = method.attribution.difference(case)  # type: ignore[attr-defined]
            assert float(found.sum()) == pytest.approx(expected, abs=2e-2 * float(found.abs().sum()))


def test_integrated_gradients_of_a_polynomial_are_exact() -> None:
    """A cubic in the mean tile: two points of the Gauss-Legendre rule integrate its quadratic gradient exactly."""

    class Cubic(Dot):
        def forward(self, batch: object) -> dict[str, torch.Tensor]:
            return {name: out**3 for name, out in super().forward(batch).items()}  # type: ignore[arg-type]

    case = Explained(Cubic(torch.tensor([1.0, 2.0], dtype=torch.float64)), batch_of(5, 2), output())
    own = case.batch.bags[0].numpy() @ [1.0, 2.0]
    # With s = mean(own), the integral of 3 (t s)^2 over t is s^2, and a tile's part of it own_i / N.
    np.testing.assert_allclose(
        scores("integrated_gradients", case, steps=2, **ZERO), own.mean() ** 2 * own / 5
    )


@pytest.mark.parametrize("kind", ["abmil", "joint", "concat", "gptomic"])
def test_attention_is_that_of_the_forward_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = explained(kind)
    found = scores("attention", case)
    assert found.sum() == pytest.approx(case.tiles)
    assert (found >= 0).all()
    seen: list[np.ndarray] = []
    if kind == "joint":  # what the last layer's attention averages values with, seen through one-hot values
        layer = case.model.decoder[-1].multihead_attn  # type: ignore[union-attr, index]
        heads, width = layer.heads, layer.out_proj.in_features // layer.heads

        def attend(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: object, dropout: float
        ) -> torch.Tensor:
            if k.shape[2] == case.tiles and q.shape[2] == len(TASKS):
                eye = torch.eye(case.tiles, dtype=v.dtype).expand(1, heads, -1, -1)
                read = torch.nn.functional.scaled_dot_product_attention(q, k, eye)
                seen.append(read[0, :, 0].mean(dim=0).detach().numpy())
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

        assert width * heads == 8
        monkeypatch.setattr("equipoise.models.joint.attention.attend", attend)
    else:
        parts = [part for name, part in case.model.named_modules() if type(part).__name__ == "GatedAttention"]
        parts[0].register_forward_hook(lambda module, inputs, out: seen.append(out[0].detach().numpy()))
    case.value()
    np.testing.assert_allclose(found / case.tiles, seen[-1], rtol=1e-9)


@pytest.mark.parametrize("kind", ["mean_pool", "transmil", "elastic_net"])
def test_a_model_without_attention_says_so(kind: str) -> None:
    case = explained(kind)
    assert attention_of(case.model, case.batch) is None
    with pytest.raises(StudyError, match="has no attention over tiles that could be shown: use method"):
        scores("attention", case)


def test_a_model_without_a_gradient_to_tiles_says_so() -> None:
    class Cut(Dot):
        def forward(self, batch: object) -> dict[str, torch.Tensor]:
            with torch.no_grad():
                return super().forward(batch)  # type: ignore[arg-type]

    case = Explained(Cut(torch.ones(2, dtype=torch.float64)), batch_of(3, 2), output())
    with pytest.raises(StudyError, match="no gradient comes back from the prediction of a Cut to tiles"):
        scores("integrated_gradients", case)
    assert scores("single_tile", case).shape == (3,)


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_that_reads_tiles_has_a_map(kind: str) -> None:
    case = explained(kind)
    for name, entry in entries("attributions").items():
        if entry.attribute("needs_attention") and attention_of(case.model, case.batch) is None:
            continue
        found = scores(name, case)
        assert found.shape == (9,)
        assert np.isfinite(found).all()
        assert np.ptp(found) > 0
    assert not case.model.training


@pytest.mark.parametrize("kind", ["abmil", "concat", "modaltune"])
def test_subsets_of_tiles_are_cases_of_their_own(kind: str) -> None:
    """The output with some tiles is that of a case which never had the others, whatever stands beside it."""
    case = explained(kind)
    rows = torch.tensor([[0, 3, 5], [2, 8, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    together = case.values_of_tiles(rows, mask)
    for i, kept in enumerate(([0, 3, 5], [2, 8])):
        alone = case.value(case.with_tiles(torch.tensor([kept])))
        torch.testing.assert_close(together[i], alone[0])
