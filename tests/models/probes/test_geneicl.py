"""GeneICL as a baseline: which tasks it has, and that it learns from its context."""

import numpy as np
import pytest

from equipoise.models.batch import TaskHead
from equipoise.models.probes import geneicl

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 12))
SIGNAL = X[:, 0] + X[:, 1]
DAYS = np.ceil(200 * RNG.exponential(np.exp(-1.5 * SIGNAL))) + 1
SURVIVAL = np.stack([DAYS, np.ones(70)], axis=1)
needs_package = pytest.mark.skipif(
    not geneicl.is_installed(), reason="geneicl is not installed: pip install -e '.[geneicl]'"
)


def test_tasks_that_it_has() -> None:
    binary = TaskHead("t", "binary", 2)
    assert geneicl.can_predict(binary, [0, 0, 0, 1, 1, 1])
    assert not geneicl.can_predict(binary, [0, 0, 0, 0, 1, 1])
    assert not geneicl.can_predict(TaskHead("t", "multiclass", 11), np.repeat(np.arange(11), 3))
    assert geneicl.can_predict(TaskHead("t", "survival", 1), SURVIVAL)
    assert not geneicl.can_predict(TaskHead("t", "survival", 1), SURVIVAL * [1, 0])
    assert not geneicl.can_predict(TaskHead("t", "survival", 2, edges=(9.0,)), SURVIVAL)
    assert not geneicl.can_predict(TaskHead("t", "regression", 1), [1.0])


@needs_package
@pytest.mark.parametrize("kind", ["binary", "regression", "survival"])
def test_it_learns_from_its_context(kind: str) -> None:
    target = {"binary": (SIGNAL > 0).astype(float), "regression": SIGNAL, "survival": SURVIVAL}[kind]
    head = TaskHead("t", kind, 2 if kind == "binary" else 1)  # type: ignore[arg-type]
    out = geneicl.predict(head, X[:50], target[:50], X[50:])
    assert out.shape == (20, head.outputs)
    if kind == "binary":
        np.testing.assert_allclose(np.exp(out).sum(axis=1), 1, atol=1e-5)
    assert np.corrcoef(out[:, -1], SIGNAL[50:])[0, 1] > 0.6
