"""Pre-training on hidden genes: what it starts from, what it learns, workers, and interruptions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from equipoise.datasets.omics.single_cell import SingleCells
from equipoise.models.rna.masked_gene import TOTAL
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.training.masked_gene_reference import (
    TEST,
    PretrainingParams,
    Reference,
    drawn_genes,
    log_csr,
    prepare_reference,
)
from equipoise.platform.training.masked_gene_training import (
    evaluate,
    new_network,
    pretrain,
    pretrain_on_workers,
)

PARAMS = PretrainingParams(
    genes=40, genes_per_cell=16, dim=8, layers=1, heads=2, hidden=16, epochs=6, batch=16, lr=5e-3, seed=3
)


def cells(count: int = 240, genes: int = 48, seed: int = 0) -> SingleCells:
    """Counts whose logarithms follow three factors."""
    rng = np.random.default_rng(seed)
    factors, loadings = rng.normal(size=(count, 3)), rng.normal(size=(3, genes))
    values = rng.poisson(np.exp(2 + factors @ loadings)).astype(np.float32)
    values[:, 0] = 0
    return SingleCells(csr_matrix(values), tuple(f"G{i}" for i in range(genes)), (), np.full(count, -1))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return prepare_reference(cells(), PARAMS)


def test_moments_of_training_cells_choose_the_genes(reference: Reference) -> None:
    whole = cells()
    assert sorted([*reference.train, *reference.val, *reference.test]) == list(range(240))
    assert (len(reference.val), len(reference.test)) == (24, 24)
    dense = whole.values.toarray()[reference.train].astype(float)
    logs = np.log1p(dense / dense.sum(axis=1, keepdims=True) * TOTAL)
    np.testing.assert_allclose(log_csr(csr_matrix(dense)).toarray(), logs, rtol=1e-6)
    most = sorted(np.argsort(-logs.std(axis=0))[:40])
    assert reference.genes == tuple(f"G{i}" for i in most)
    panel = dense[:, most]
    logs = np.log1p(panel / panel.sum(axis=1, keepdims=True) * TOTAL)
    np.testing.assert_allclose(reference.rows(reference.train), logs, rtol=1e-5)
    np.testing.assert_allclose(reference.statistics.mean, logs.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(reference.statistics.spread, logs.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(
        reference.statistics.share, (panel / panel.sum(axis=1, keepdims=True)).mean(axis=0), rtol=1e-5
    )
    # Loadings on all components reproduce the correlations of the genes, up to their common scale.
    wide = prepare_reference(whole, PARAMS.model_copy(update={"dim": 40})).statistics.loadings.astype(float)
    products, correlations = wide @ wide.T, np.corrcoef(logs.T)
    np.testing.assert_allclose(products / products[0, 0], correlations / correlations[0, 0], atol=1e-4)


def test_held_out_cells_change_nothing_that_is_learned_from(reference: Reference) -> None:
    whole = cells()
    values = whole.values.toarray()
    values[reference.test] = values[reference.test][:, ::-1] * 3
    other = prepare_reference(replace(whole, values=csr_matrix(values)), PARAMS)
    assert other.genes == reference.genes
    for name in ("mean", "spread", "share", "loadings"):
        np.testing.assert_array_equal(
            getattr(other.statistics, name), getattr(reference.statistics, name), err_msg=name
        )


def test_training_starts_at_the_loss_of_the_mean_and_lowers_it(reference: Reference, tmp_path: Path) -> None:
    network = new_network(reference, PARAMS)
    before = evaluate(network, reference, reference.test, PARAMS, TEST)
    assert before.network == pytest.approx(before.mean, rel=1e-6)
    assert before.explained == pytest.approx(0, abs=1e-6)
    # By hand: the hidden genes of every test cell against the means of training cells.
    genes = drawn_genes(reference, reference.test, (PARAMS.seed, TEST))[:, 24:]
    values = np.take_along_axis(reference.rows(reference.test), genes, axis=1)
    by_hand = ((values - reference.statistics.mean[genes]) ** 2).mean()
    assert before.mean == pytest.approx(by_hand, rel=1e-5)
    progress = pretrain(network, reference, PARAMS, path=tmp_path / "checkpoint.pt")
    after = evaluate(network, reference, reference.test, PARAMS, TEST)
    assert after.mean == before.mean
    assert after.explained > 0.4
    assert progress.history[-1]["train/loss"] < progress.history[0]["train/loss"]


def test_genes_that_are_independent_teach_nothing(tmp_path: Path) -> None:
    whole = cells()
    rng = np.random.default_rng(1)
    values = whole.values.toarray()
    values[:, 1] += 20_000  # a constant sum: shares of one total would be correlated
    shuffled = replace(whole, values=csr_matrix(rng.permuted(values, axis=0)))
    reference = prepare_reference(shuffled, PARAMS)
    network = new_network(reference, PARAMS)
    pretrain(network, reference, PARAMS, path=tmp_path / "checkpoint.pt")
    assert evaluate(network, reference, reference.test, PARAMS, TEST).explained < 0.05


def test_an_interrupted_training_continues_where_it_stopped(reference: Reference, tmp_path: Path) -> None:
    whole = new_network(reference, PARAMS)
    expected = pretrain(whole, reference, PARAMS, path=tmp_path / "whole.pt")

    class StopError(Exception):
        pass

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 3:
            raise StopError

    path = tmp_path / "parts.pt"
    with pytest.raises(StopError):
        pretrain(new_network(reference, PARAMS), reference, PARAMS, path=path, report=stop)
    network = new_network(reference, PARAMS)
    progress = pretrain(network, reference, PARAMS, path=path)
    assert progress.history == expected.history
    for name, value in whole.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    other = PARAMS.model_copy(update={"lr": 1e-3})
    with pytest.raises(StudyError, match=r"settings\.lr: 0\.005 → 0\.001"):
        pretrain(network, reference, other, path=path)


def test_training_stops_without_progress(reference: Reference, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"lr": 1e-12, "epochs": 30, "patience": 2})
    progress = pretrain(new_network(reference, params), reference, params, path=tmp_path / "checkpoint.pt")
    assert len(progress.history) <= progress.best_epoch + 2 < 30


@pytest.mark.slow
@pytest.mark.cluster
def test_two_workers_of_ray_train_equal_one(ray_session: None, reference: Reference, tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"epochs": 2, "batch": 15})  # batches that two workers share unevenly
    alone, together = new_network(reference, params), new_network(reference, params)
    one = pretrain(alone, reference, params, path=tmp_path / "one.pt")
    both = params.model_copy(update={"workers": 2})
    pretrain_on_workers(reference, both, tmp_path / "two.pt")
    assert (tmp_path / "two.pt").is_file()
    two = pretrain(together, reference, params, path=tmp_path / "two.pt")  # nothing is left to do
    assert len(two.history) == 2
    for first, second in zip(one.history, two.history, strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    for name, value in alone.state_dict().items():
        if name.endswith("in_proj_bias"):
            continue  # a key's bias has no gradient but rounding, which Adam magnifies
        torch.testing.assert_close(together.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_settings_and_references_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="dim 8 is not divisible by heads 3"):
        PretrainingParams(dim=8, heads=3)
    with pytest.raises(ValueError, match="4 workers share batches of 2 cells"):
        PretrainingParams(batch=2, workers=4)
    with pytest.raises(DataError, match="a reference of 49 cells is too small; 50 are needed"):
        prepare_reference(cells(49), PARAMS)
    few = cells(60)
    values = csr_matrix(np.ones((60, 48), np.float32))
    with pytest.raises(DataError, match="0 genes of the reference vary"):
        prepare_reference(replace(few, values=values), PARAMS)
