"""scGPT against torch's own transformer, and what its bulk policies do with a profile."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.rna.entries import ScGptParams
from equipoise.models.rna.scgpt import ScGpt

GENES = [f"GENE{i}" for i in range(60)]
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_word_about_hashes() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*differ from the published")
        yield


def counts(n: int, zeros: float = 0.3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.0, 50.0, (n, len(GENES))).round(3) + 0.001
    return (values * (rng.random(values.shape) > zeros)).astype(np.float32)


def theirs(state: dict[str, Tensor], tokens: Tensor, values: Tensor, padding: Tensor | None = None) -> Tensor:
    """The official forward pass with torch's transformer and these weights: outputs of all positions."""
    layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.2, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    start = "transformer_encoder."
    encoder.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
    encoder.eval()

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, (32,), state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    genes = norm(functional.embedding(tokens, state["encoder.embedding.weight"]), "encoder.enc_norm")
    hidden = linear(values.clamp(max=512)[..., None], "value_encoder.linear1").relu()
    levels = norm(linear(hidden, "value_encoder.linear2"), "value_encoder.norm")
    with torch.no_grad():
        return encoder(genes + levels, src_key_padding_mask=padding)


def test_the_network_is_torchs_transformer_with_these_weights(
    state: dict[str, Tensor], write_folder: Write
) -> None:
    network = ScGpt(ScGptParams(folder=str(write_folder(state))))._network
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 63, (5, 40), generator=rng)
    values = torch.randint(1, 51, (5, 40), generator=rng).float()
    values[0, 3] = 900.0  # values above 512 are cut off
    with torch.no_grad():
        ours = network(tokens, values)
    assert torch.allclose(ours, theirs(state, tokens, values)[:, 0], atol=1e-5, rtol=0)
    assert ours.std() > 0.1


def test_padding_changes_nothing(state: dict[str, Tensor], write_folder: Write) -> None:
    network = ScGpt(ScGptParams(folder=str(write_folder(state))))._network
    rng = torch.Generator().manual_seed(2)
    tokens, values = torch.randint(0, 60, (3, 20), generator=rng), torch.rand(3, 20, generator=rng) * 50
    padded = torch.cat([tokens, torch.full((3, 15), 60)], dim=1)
    filled = torch.cat([values, torch.full((3, 15), -2.0)], dim=1)
    with torch.no_grad():
        alone = network(tokens, values)
        beside = network(padded, filled, padded != 60)
        without_mask = network(padded, filled)
    assert torch.allclose(beside, alone, atol=1e-5, rtol=0)
    assert torch.allclose(beside, theirs(state, padded, filled, padded == 60)[:, 0], atol=1e-5, rtol=0)
    assert not torch.allclose(without_mask, alone, atol=1e-2)


def test_a_profile_by_hand(state: dict[str, Tensor], write_folder: Write) -> None:
    """``<cls>`` with the value of padding, expressed genes with their bins, the output at ``<cls>``, length 1."""
    encoder = ScGpt(ScGptParams(folder=str(write_folder(state)), policy="all"))
    row = np.zeros((1, 60), np.float32)
    row[0, [7, 3, 50]] = [2.5, 900.0, 10.0]
    # Edges of three values at linspace(0, 1, 50): the smallest is in bin 1, the middle one behind 25 edges, the largest
    # on the last edge.
    tokens = torch.tensor([[61, 3, 7, 50]])
    expected = theirs(state, tokens, torch.tensor([[-2.0, 50.0, 1.0, 25.0]]))[0, 0].numpy()
    vector = encoder.encode(row, GENES, kind="counts", seed=0)
    np.testing.assert_allclose(vector[0], expected / np.linalg.norm(expected), atol=1e-5)
    assert vector.dtype == np.float32


def test_vectors_follow_the_seed_and_the_sample_alone(state: dict[str, Tensor], write_folder: Write) -> None:
    params: dict[str, Any] = {"folder": str(write_folder(state)), "draws": 3, "max_length": 11}
    encoder, values = ScGpt(ScGptParams(**params)), counts(4)
    first = encoder.encode(values, GENES, kind="tpm", seed=5)
    np.testing.assert_array_equal(encoder.encode(values, GENES, kind="tpm", seed=5), first)
    np.testing.assert_array_equal(encoder.encode(values[2:3], GENES, kind="tpm", seed=5), first[2:3])
    assert np.abs(encoder.encode(values, GENES, kind="tpm", seed=6) - first).max() > 1e-3
    turned = np.random.default_rng(0).permutation(60)
    shuffled = encoder.encode(values[:, turned], [GENES[i] for i in turned], kind="tpm", seed=5)
    np.testing.assert_array_equal(shuffled, first)
    together = ScGpt(ScGptParams(**params, batch=3)).encode(values, GENES, kind="tpm", seed=5)
    np.testing.assert_allclose(together, first, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)


def test_more_draws_come_closer_to_all_genes(state: dict[str, Tensor], write_folder: Write) -> None:
    folder, values = str(write_folder(state)), counts(12, zeros=0.0)

    def spread(draws: int) -> float:
        encoder = ScGpt(ScGptParams(folder=folder, draws=draws, max_length=16))
        seeds = [encoder.encode(values, GENES, kind="counts", seed=seed) for seed in range(4)]
        return float(np.std(seeds, axis=0).mean())

    assert spread(16) < 0.4 * spread(1)  # 1 / sqrt(16) = .25
    few = ScGpt(ScGptParams(folder=folder, max_length=61)).encode(values, GENES, kind="counts", seed=0)
    whole = ScGpt(ScGptParams(folder=folder, policy="all")).encode(values, GENES, kind="counts", seed=0)
    np.testing.assert_array_equal(few, whole)  # nothing to draw where all genes fit


def test_a_panel_shows_its_genes_with_the_bins_of_the_whole_profile(
    state: dict[str, Tensor], write_folder: Write, tmp_path: Path
) -> None:
    panel = tmp_path / "panel.txt"
    panel.write_text("# three genes\nGENE4\nGENE2\n\nGENE9\n")
    params: dict[str, Any] = {"folder": str(write_folder(state)), "policy": "panel", "panel": str(panel)}
    encoder, values = ScGpt(ScGptParams(**params)), counts(2, zeros=0.0)
    assert encoder.knows(["GENE2", "GENE3", "x"]).tolist() == [True, False, False]
    changed = values.copy()
    changed[0, 30] = values[0, 30] * 1.0001  # no other gene's bin changes
    vectors = encoder.encode(values, GENES, kind="counts", seed=0)
    np.testing.assert_allclose(encoder.encode(changed, GENES, kind="counts", seed=0), vectors, atol=1e-6)
    ranks = (values[0][:, None] >= np.quantile(values[0], np.linspace(0, 1, 50))).sum(axis=1)
    seen = torch.tensor([[-2.0, *ranks[[2, 4, 9]]]]).float()
    expected = theirs(state, torch.tensor([[61, 2, 4, 9]]), seen)[0, 0].numpy()
    np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), atol=1e-5)
    panel.write_text("GENE4\nENSG0000\n")
    with pytest.raises(ValueError, match=r"1 of 2 genes are not in the vocabulary.*ENSG0000"):
        ScGpt(ScGptParams(**params))


def test_counts_and_their_logarithms_are_the_same_ranks(
    state: dict[str, Tensor], write_folder: Write
) -> None:
    encoder, values = ScGpt(ScGptParams(folder=str(write_folder(state)), policy="all")), counts(3)
    ranked = encoder.encode(values, GENES, kind="counts", seed=0)
    np.testing.assert_allclose(encoder.encode(np.log1p(values), GENES, kind="log", seed=0), ranked, atol=1e-6)


def test_gaps_are_genes_that_are_not_seen_and_empty_samples_have_no_vector(
    state: dict[str, Tensor], write_folder: Write
) -> None:
    encoder, values = ScGpt(ScGptParams(folder=str(write_folder(state)))), counts(3)
    values[0, :5] = 0
    values[1] = 0
    gaps = values.copy()
    gaps[0, :5] = np.nan
    gaps[2, :] = np.nan
    zero, gap = (encoder.encode(v, GENES, kind="counts", seed=0) for v in (values, gaps))
    np.testing.assert_array_equal(gap[0], zero[0])
    assert np.isnan(zero[1]).all()
    assert np.isnan(gap[2]).all()
    assert np.isfinite(zero[2]).all()


def test_what_is_refused(state: dict[str, Tensor], write_folder: Write) -> None:
    folder = str(write_folder(state))
    encoder = ScGpt(ScGptParams(folder=folder))
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 60)).astype(np.float32)
    with pytest.raises(ValueError, match=r"'scgpt' cannot use z-scores.*counts, tpm, log"):
        encoder.encode(scores, GENES, kind="zscore", seed=0)
    with pytest.raises(ValueError, match="look like z-scores"):
        encoder.encode(scores, GENES, kind="counts", seed=0)
    with pytest.raises(ValueError, match=r"none of the 1 genes.*\(ENSG1, …\)\n.*by their symbols"):
        encoder.encode(np.ones((1, 1), np.float32), ["ENSG1"], kind="counts", seed=0)
    with pytest.raises(ValidationError, match="a panel is for policy: panel"):
        ScGptParams(folder=folder, policy="panel")


def test_the_identity_is_that_of_the_encoder_and_follows_policy_and_weights(
    state: dict[str, Tensor], write_folder: Write
) -> None:
    folder = write_folder(state)
    params = ScGptParams(folder=str(folder))
    built, identity = ScGpt(params), ScGpt.identify(params)
    assert (identity.dim, identity.fingerprint) == (built.dim, built.fingerprint)
    assert built.dim == 32
    others = [
        ScGptParams(folder=str(folder), draws=4),
        ScGptParams(folder=str(folder), policy="all"),
        ScGptParams(folder=str(write_folder(state | {"encoder.enc_norm.bias": torch.zeros(32)}))),
    ]
    assert len({identity.fingerprint, *(ScGpt.identify(other).fingerprint for other in others)}) == 4
    unread = ScGptParams(folder=str(folder), policy="all", draws=4, batch=9, device="cpu")
    assert ScGpt.identify(unread).fingerprint == ScGpt.identify(others[1]).fingerprint
