"""The masked-gene encoder: its folder, gaps, genes that a table lacks, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.models.rna.entries import MaskedGeneParams
from equipoise.models.rna.masked_gene import (
    TOTAL,
    GeneStatistics,
    MaskedGeneConfig,
    MaskedGeneEncoder,
    MaskedGeneNetwork,
    log_profiles,
    save_masked_gene,
)

GENES = tuple(f"G{i}" for i in range(20))
CONFIG = MaskedGeneConfig(dim=8, layers=2, heads=2, hidden=12)


def counts(n: int = 6) -> np.ndarray:
    return np.random.default_rng(4).poisson(30, (n, len(GENES))).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> MaskedGeneNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MaskedGeneNetwork(CONFIG, len(GENES))
    x, share = log_profiles(counts(50)), counts(50).sum(axis=0) / counts(50).sum()
    loadings = np.zeros((len(GENES), CONFIG.dim), np.float32)
    network.set_statistics(GeneStatistics(x.mean(axis=0), x.std(axis=0), share.astype(np.float32), loadings))
    return network.eval()


@pytest.fixture(scope="module")
def folder(network: MaskedGeneNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoders") / "masked"
    save_masked_gene(network, CONFIG, GENES, path, {"epochs": 1})
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> MaskedGeneEncoder:
    return MaskedGeneEncoder(MaskedGeneParams(folder=str(folder), device="cpu"))


def encode(encoder: MaskedGeneEncoder, values: np.ndarray, genes: tuple[str, ...] = GENES) -> np.ndarray:
    return encoder.encode(values, genes, kind="counts", seed=0)


def test_it_is_the_network_on_profiles_of_one_total(
    network: MaskedGeneNetwork, encoder: MaskedGeneEncoder
) -> None:
    rows = counts()
    x = np.log1p(rows / rows.sum(axis=1, keepdims=True) * TOTAL)
    genes = torch.arange(len(GENES)).expand(len(rows), -1)
    with torch.inference_mode():
        expected = network(torch.from_numpy(x).float(), genes).numpy()
    np.testing.assert_allclose(encode(encoder, rows), expected, atol=1e-5)
    np.testing.assert_allclose(encode(encoder, 7 * rows), expected, atol=1e-5)  # the depth says nothing
    np.testing.assert_array_equal(encode(encoder, rows), encode(encoder, rows))
    logs = encoder.encode(np.log1p(rows), GENES, kind="log", seed=0)
    np.testing.assert_allclose(logs, expected, atol=1e-4)


def test_order_batches_and_other_genes_change_nothing(folder: Path, encoder: MaskedGeneEncoder) -> None:
    rows = counts()
    expected = encode(encoder, rows)
    np.testing.assert_allclose(encode(encoder, rows[:, ::-1], GENES[::-1]), expected, atol=1e-6)
    wider = np.concatenate([rows, np.full((6, 1), 1e6, np.float32)], axis=1)
    np.testing.assert_array_equal(encode(encoder, wider, (*GENES, "ELSEWHERE")), expected)
    assert encoder.knows(["ELSEWHERE", "G3"]).tolist() == [False, True]
    together = MaskedGeneEncoder(MaskedGeneParams(folder=str(folder), device="cpu", batch=4))
    np.testing.assert_allclose(encode(together, rows), expected, atol=1e-6)
    assert together.fingerprint == encoder.fingerprint


def test_a_gap_is_a_gene_that_is_not_there(encoder: MaskedGeneEncoder) -> None:
    rows = counts()
    without = encode(encoder, rows[:, :15], GENES[:15])
    gaps = rows.copy()
    gaps[0, 15:] = np.nan
    mixed = encode(encoder, gaps)
    np.testing.assert_allclose(mixed[0], without[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1:], encode(encoder, rows)[1:], atol=1e-5)
    gaps[2] = np.nan
    gaps[3] = 0
    assert np.isnan(encode(encoder, gaps)).all(axis=1).tolist() == [False, False, True, True, False, False]


def test_profiles_that_lack_genes_are_scaled_to_the_share_of_the_others() -> None:
    rows = counts()
    share = rows.sum(axis=0) / rows.sum()
    gaps = rows.copy()
    gaps[:, 10:] = np.nan
    known = share[:10].sum()
    expected = np.log1p(rows[:, :10] / rows[:, :10].sum(axis=1, keepdims=True) * TOTAL * known)
    np.testing.assert_allclose(log_profiles(gaps, share)[:, :10], expected, rtol=1e-5)
    np.testing.assert_allclose(log_profiles(rows, share), log_profiles(rows), rtol=1e-6)


def test_expected_values_start_at_the_mean(network: MaskedGeneNetwork) -> None:
    genes = torch.tensor([[3, 1], [0, 19]])
    torch.testing.assert_close(network.predict(torch.randn(2, CONFIG.dim), genes), network.mean[genes])


def test_folders_that_are_refused(network: MaskedGeneNetwork, folder: Path, tmp_path: Path) -> None:
    params = MaskedGeneParams(folder=str(tmp_path / "copy"), device="cpu")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        MaskedGeneEncoder(params)
    with pytest.raises(FileExistsError, match="exists already"):
        save_masked_gene(network, CONFIG, GENES, folder, {})
    save_masked_gene(network, CONFIG, GENES, tmp_path / "copy", {"epochs": 1})
    same = MaskedGeneEncoder.identify(MaskedGeneParams(folder=str(folder)))
    assert MaskedGeneEncoder.identify(params) == same
    assert same.dim == 8
    (tmp_path / "copy" / "genes.txt").write_text("\n".join(GENES[::-1]) + "\n")
    assert MaskedGeneEncoder.identify(params).fingerprint != same.fingerprint
    (tmp_path / "copy" / "genes.txt").write_text("\n".join(GENES[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"gene\.weight \[20, 8\] instead of \[19, 8\]"):
        MaskedGeneEncoder(params)
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"total": 1.0}))
    with pytest.raises(ValueError, match="not an encoder 'masked_gene' of this version"):
        MaskedGeneEncoder.identify(params)


def test_profiles_that_are_refused(encoder: MaskedGeneEncoder) -> None:
    with pytest.raises(ValueError, match="cannot use z-scores"):
        encoder.encode(counts(), GENES, kind="zscore", seed=0)
    with pytest.raises(ValueError, match="none of the 20 genes is in its reference: ENSG0"):
        encode(encoder, counts(), tuple(f"ENSG{i}" for i in range(20)))
