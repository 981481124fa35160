"""Values and gradients equal the training loop's losses in float64; curvature equals differences of gradients."""

import numpy as np
import pytest
import torch

from equipoise.models.batch import TaskHead
from equipoise.models.cox import cox_partial_likelihood
from equipoise.models.losses import TaskLosses
from equipoise.models.probes.likelihoods import Cox, Hazards, Logistic, Softmax, SquaredError

N, MODELS = 50, 3
RNG = np.random.default_rng(7)
NUMBERS = RNG.normal(size=N)
BINARY = RNG.integers(0, 2, N).astype(float)
CLASSES = RNG.integers(0, 4, N).astype(float)
DAYS = RNG.integers(1, 15, N).astype(float)
EVENTS = RNG.integers(0, 2, N).astype(float)
STRATA = np.array(list("abc"))[RNG.integers(0, 3, N)]
USE = (RNG.random((N, MODELS)) < 0.8).astype(float)


def task_loss(head, target, weights=None, ties="efron"):
    losses = TaskLosses([head], weights, ties=ties)
    encoded = torch.as_tensor(target)

    def mean(outputs, mask):
        return losses({"t": outputs}, {"t": encoded}, {"t": mask}).means()[0]

    return mean


def stratified(outputs, mask):
    total = torch.zeros((), dtype=torch.float64)
    for name in "abc":
        rows = mask & torch.as_tensor(name == STRATA)
        total = total + cox_partial_likelihood(
            outputs[rows, 0], torch.as_tensor(DAYS)[rows], torch.as_tensor(EVENTS)[rows]
        )
    return total / torch.as_tensor(EVENTS)[mask].sum()


TWO, FOUR = (0.5, 1.75), (0.5, 1.0, 2.0, 0.25)  # exact in the float32 of the losses' buffers
SURVIVAL = np.stack([DAYS, EVENTS], axis=1)
binary_loss = task_loss(TaskHead("t", "binary", 2), BINARY, {"t": TWO})
CASES = {
    "squared": (SquaredError(NUMBERS), task_loss(TaskHead("t", "regression", 1), NUMBERS)),
    "binary": (
        Logistic(BINARY, TWO),
        lambda logit, mask: binary_loss(torch.cat([-logit / 2, logit / 2], dim=1), mask),
    ),
    "multiclass": (
        Softmax(CLASSES, 4, FOUR),
        task_loss(TaskHead("t", "multiclass", 4), CLASSES, {"t": FOUR}),
    ),
    "efron": (Cox(DAYS, EVENTS), task_loss(TaskHead("t", "survival", 1), SURVIVAL)),
    "breslow": (
        Cox(DAYS, EVENTS, ties="breslow"),
        task_loss(TaskHead("t", "survival", 1), SURVIVAL, ties="breslow"),
    ),
    "strata": (Cox(DAYS, EVENTS, STRATA), stratified),
    "hazards": (
        Hazards(DAYS, EVENTS, (5.0, 9.0)),
        task_loss(TaskHead("t", "survival", 3, edges=(5.0, 9.0)), SURVIVAL),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_loss_of_the_training_loop(name):
    likelihood, loss = CASES[name]
    eta = 2 * np.random.default_rng(1).normal(size=(N, likelihood.outputs, MODELS))
    at = likelihood.at(eta, USE)
    for model in range(MODELS):
        outputs = torch.tensor(eta[:, :, model], requires_grad=True)
        value = loss(outputs, torch.as_tensor(USE[:, model] > 0))
        (gradient,) = torch.autograd.grad(value, outputs)
        assert at.value[model] == pytest.approx(value.item(), abs=1e-12)
        np.testing.assert_allclose(at.gradient[:, :, model], gradient.numpy(), atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_curvature_is_the_derivative_of_the_gradient(name):
    likelihood, _ = CASES[name]
    rng = np.random.default_rng(2)
    eta, direction = rng.normal(size=(2, N, likelihood.outputs, MODELS))
    h = 1e-5
    change = (
        likelihood.at(eta + h * direction, USE).gradient - likelihood.at(eta - h * direction, USE).gradient
    )
    np.testing.assert_allclose(likelihood.at(eta, USE).curvature(direction), change / (2 * h), atol=1e-9)


def test_cox_is_exact_for_scores_far_apart():
    days = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    eta = np.array([300.0, -300.0, 0.0, 5.0])
    at = Cox(days.numpy(), [1, 1, 1, 1]).at(eta[:, None, None], np.ones((4, 1)))
    expected = cox_partial_likelihood(torch.tensor(eta), days, torch.ones(4, dtype=torch.float64))
    assert at.value[0] == pytest.approx(expected.item() / 4, rel=1e-12)
    far = Cox(days.numpy(), [1, 1, 1, 1]).at(1e4 * eta[:, None, None], np.ones((4, 1)))
    assert np.isfinite(far.value).all()
    assert np.isfinite(far.gradient).all()


def test_unknown_ties_are_refused():
    with pytest.raises(ValueError, match="efron"):
        Cox([1.0], [1], ties="exact")
