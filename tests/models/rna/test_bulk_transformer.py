"""The transformer over bulk genes against torch's own, read from a file with other names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from equipoise.models.rna.bulk_transformer import BulkTransformer
from equipoise.models.rna.entries import BulkTransformerParams

GENES = [f"ENSG{i:011}" for i in range(25)]
CONFIG: dict[str, Any] = {
    "dim": 16,
    "heads": 4,
    "hidden": 24,
    "layers": 2,
    "bins": 64,
    "first_bin": 1,
    "bin_rows": 67,
    "activation": "gelu",
    "norm": "pre",
    "final_norm": True,
    "tensors": {
        "gene_embedding.weight": "positions",
        "bin_embedding.weight": "expression.table",
        "transformer.layers.{i}.self_attn.in_proj_weight": ["block{i}.q", "block{i}.k", "block{i}.v"],
        "transformer.layers.{i}.linear1.weight": "block{i}.up",
    },
    "transposed": [
        "transformer.layers.{i}.self_attn.in_proj_weight",
        "transformer.layers.{i}.linear1.weight",
    ],
}


@pytest.fixture
def oracle() -> tuple[nn.TransformerEncoder, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, "gelu", norm_first=True, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
    for tensor in encoder.parameters():
        nn.init.normal_(tensor, std=0.3)
    return encoder.eval().requires_grad_(False), torch.randn(25, 16), torch.randn(67, 16)


@pytest.fixture
def folder(tmp_path: Path, oracle: tuple[nn.TransformerEncoder, Tensor, Tensor]) -> Path:
    encoder, genes, bins = oracle
    state = {"positions": genes, "expression.table": bins}
    for name, tensor in encoder.state_dict().items():
        layer = name.split(".")[1]
        if name.endswith("in_proj_weight"):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            state |= {f"block{layer}.{part}": rows.T.contiguous() for part, rows in parts}
        elif name.endswith("linear1.weight"):
            state[f"block{layer}.up"] = tensor.T.contiguous()
        elif name.startswith("norm."):
            state[name.replace("norm.", "final_norm.")] = tensor
        else:
            state[f"transformer.{name}"] = tensor
    write(tmp_path, CONFIG)
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "genes.txt").write_text("\n".join(GENES))


def encoder_of(folder: Path) -> BulkTransformer:
    return BulkTransformer(BulkTransformerParams(folder=str(folder), device="cpu"))


def tpm(n: int) -> np.ndarray:
    return np.random.default_rng(1).gamma(0.3, 300.0, (n, 25)).astype(np.float32)


def expected(
    oracle: tuple[nn.TransformerEncoder, Tensor, Tensor], row: np.ndarray, genes: list[int]
) -> Tensor:
    encoder, gene_rows, bin_rows = oracle
    scaled = np.log10(1 + row.astype(float)) / 5.547
    bins = 1 + np.minimum(np.floor(scaled * 63), 63).astype(int)  # edges are 0, 1/63, …, 1
    return encoder((gene_rows[genes] + bin_rows[bins])[None])[0].mean(dim=0)


def test_vectors_are_those_of_torchs_transformer(
    folder: Path, oracle: tuple[nn.TransformerEncoder, Tensor, Tensor]
) -> None:
    values = tpm(3)
    values[0, 4] = 0
    vectors = encoder_of(folder).encode(values, GENES, kind="tpm")
    for vector, row in zip(vectors, values, strict=True):
        np.testing.assert_allclose(vector, expected(oracle, row, list(range(25))), atol=1e-5)
    logs = np.log1p(values)
    np.testing.assert_allclose(encoder_of(folder).encode(logs, GENES, kind="log"), vectors, atol=1e-5)


def test_versions_order_and_missing_genes(
    folder: Path, oracle: tuple[nn.TransformerEncoder, Tensor, Tensor]
) -> None:
    encoder, values = encoder_of(folder), tpm(1)
    chosen = [20, *range(13)]
    named = [f"{GENES[i]}.{i + 1}" for i in chosen]
    assert encoder.knows([*named, "TP53"]).tolist() == [True] * 14 + [False]
    vector = encoder.encode(values[:, chosen], named, kind="tpm")[0]
    np.testing.assert_allclose(vector, expected(oracle, values[0, chosen], chosen), atol=1e-5)
    gaps = values.copy()
    gaps[0, [i for i in range(25) if i not in chosen]] = np.nan
    np.testing.assert_allclose(encoder.encode(gaps, GENES, kind="tpm")[0], vector, atol=1e-5)
    with pytest.warns(UserWarning, match="3 of the 25 genes of bulk_transformer are in the table"):
        encoder.encode(values[:, :3], GENES[:3], kind="tpm")
    with pytest.raises(ValueError, match="two columns mean one gene"):
        encoder.encode(values[:, :2], [GENES[0], f"{GENES[0]}.2"], kind="tpm")
    assert np.isnan(encoder.encode(values * 0, GENES, kind="tpm")).all()


def test_what_is_refused(folder: Path) -> None:
    encoder = encoder_of(folder)
    with pytest.raises(ValueError, match="'bulk_transformer' uses tpm, log, not 'counts'"):
        encoder.encode(np.ones((1, 25), np.float32), GENES, kind="counts")
    with pytest.raises(ValueError, match="cannot use z-scores"):
        encoder.encode(np.ones((1, 25), np.float32), GENES, kind="zscore")
    with pytest.raises(ValueError, match=r"none of the 1 genes is known to the encoder: TP53 here, ENSG0"):
        encoder.encode(np.ones((1, 1), np.float32), ["TP53"], kind="tpm")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 3}, r"tensors of config\.json are missing \(block2\.q, .*\n.*correct `tensors`"),
        (
            {"hidden": 25},
            r"6 of another shape \(transformer\.layers\.0\.linear1\.weight \[24, 16\] instead of \[25, 16\]",
        ),
        ({"tensors": {}}, r"missing \(gene_embedding\.weight"),
        ({"transposed": []}, r"of another shape \(transformer\.layers\.0\.linear1\.weight \[16, 24\]"),
        ({"heads": 5}, "dim 16 is no multiple of heads 5"),
        ({"bin_rows": 60}, "bin_rows 60 are fewer"),
        ({"activation": "swish"}, "activation: String should match"),
        ({"rotary": True}, "rotary: Extra inputs"),
    ],
)
def test_configurations_that_do_not_fit_the_file(folder: Path, changes: dict[str, Any], said: str) -> None:
    write(folder, CONFIG | changes)
    with pytest.raises(ValueError, match=said):
        encoder_of(folder)


def test_the_identity_is_read_without_building(folder: Path) -> None:
    built = encoder_of(folder)
    identity = BulkTransformer.identify(BulkTransformerParams(folder=str(folder)))
    assert (identity.dim, identity.fingerprint) == (16, built.fingerprint)
    write(folder, CONFIG | {"divisor": 5.0})
    assert encoder_of(folder).fingerprint != built.fingerprint
