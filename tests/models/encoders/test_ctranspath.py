import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from equipoise.models.encoders.convert_ctranspath import convert, main
from equipoise.models.encoders.ctranspath import (
    CTransPath,
    SwinTransformer,
    relative_position_index,
    shift_mask,
    window_partition,
    window_reverse,
)
from equipoise.models.encoders.entries import ChiefCTransPathParams, CTransPathParams


@pytest.fixture(scope="module")
def network() -> SwinTransformer:
    """Random numbers everywhere, also in what starts as zeros and ones."""
    network = SwinTransformer()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0.0, 0.05, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def official(network: SwinTransformer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint laid out as the published one, with its digest."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for at, depth in enumerate((2, 2, 6, 2)):
        for block in range(depth):
            name = f"layers.{at}.blocks.{block}"
            state[f"{name}.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
            if block % 2 and at < 3:
                state[f"{name}.attn_mask"] = torch.zeros(1, 49, 49)
    path = tmp_path_factory.mktemp("official") / "ctranspath.pth"
    torch.save({"model": state}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_parameters() -> None:
    """Swin-T has 27,519,354 without its head; the stem replaces a patch layer of 4,704."""
    count = sum(parameter.numel() for parameter in SwinTransformer().parameters())
    stem = 12 * 3 * 9 + 2 * 12 + 24 * 12 * 9 + 2 * 24 + 96 * 24 + 96
    assert count == 27_519_354 - 4_704 + stem == 27_520_038


def test_names_are_those_of_the_checkpoint() -> None:
    state = SwinTransformer().state_dict()
    names = set(state)
    wanted = {f"patch_embed.proj.{k}.weight" for k in (0, 1, 3, 4, 6)} | {"patch_embed.proj.6.bias"}
    wanted |= {f"patch_embed.proj.{k}.{part}" for k in (1, 4)
               for part in ("bias", "running_mean", "running_var", "num_batches_tracked")}  # fmt: skip
    wanted |= {f"{norm}.{kind}" for norm in ("patch_embed.norm", "norm") for kind in ("weight", "bias")}
    for at, depth in enumerate((2, 2, 6, 2)):
        for block in range(depth):
            name = f"layers.{at}.blocks.{block}"
            wanted |= {f"{name}.{part}.{kind}" for kind in ("weight", "bias")
                       for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")}  # fmt: skip
            wanted.add(f"{name}.attn.relative_position_bias_table")
        if at < 3:
            down = f"layers.{at}.downsample"
            wanted |= {f"{down}.norm.weight", f"{down}.norm.bias", f"{down}.reduction.weight"}
    assert names == wanted
    assert state["layers.2.blocks.0.attn.relative_position_bias_table"].shape == (169, 12)
    assert state["layers.1.downsample.reduction.weight"].shape == (384, 768)


def by_hand(p: dict[str, Tensor], image: Tensor) -> Tensor:
    """The definition without windows: every patch looks at those whose (shifted) window it shares; float64."""
    x = image[None]
    for at in (0, 3):
        x = functional.conv2d(x, p[f"patch_embed.proj.{at}.weight"], stride=2, padding=1)
        bn = f"patch_embed.proj.{at + 1}"
        x = (x - p[f"{bn}.running_mean"].view(-1, 1, 1)) / (p[f"{bn}.running_var"] + 1e-5).sqrt().view(
            -1, 1, 1
        )
        x = (x * p[f"{bn}.weight"].view(-1, 1, 1) + p[f"{bn}.bias"].view(-1, 1, 1)).relu()
    x = (
        torch.einsum("oc,chw->hwo", p["patch_embed.proj.6.weight"][:, :, 0, 0], x[0])
        + p["patch_embed.proj.6.bias"]
    )

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def attention(x: Tensor, name: str, heads: int, shift: int) -> Tensor:
        side, width = x.shape[0], x.shape[2]
        position = torch.arange(side)
        window = (position - shift).div(
            7, rounding_mode="floor"
        )  # patches before the first full window: a window, too
        q, k, v = linear(x, f"{name}.qkv").view(side, side, 3, heads, width // heads).permute(2, 3, 0, 1, 4)
        mixed = torch.zeros(side, side, heads, width // heads, dtype=x.dtype)
        table = p[f"{name}.relative_position_bias_table"].view(13, 13, heads)
        for row in window.unique():
            rows = position[window == row]
            for column in window.unique():
                columns = position[window == column]
                r, c = (g.flatten() for g in torch.meshgrid(rows, columns, indexing="ij"))
                scores = q[:, r, c] @ k[:, r, c].transpose(1, 2) / math.sqrt(width // heads)
                bias = table[r[:, None] - r[None] + 6, c[:, None] - c[None] + 6]
                weights = (scores + bias.permute(2, 0, 1)).softmax(-1)
                mixed[r, c] = (weights @ v[:, r, c]).transpose(0, 1)
        return linear(mixed.flatten(2), f"{name}.proj")

    x = norm(x, "patch_embed.norm")
    for at, (depth, heads) in enumerate(((2, 3), (2, 6), (6, 12), (2, 24))):
        for block in range(depth):
            name = f"layers.{at}.blocks.{block}"
            shift = 3 if block % 2 and at < 3 else 0
            x = x + attention(norm(x, f"{name}.norm1"), f"{name}.attn", heads, shift)
            x = x + linear(
                functional.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2"
            )
        if at < 3:
            down = f"layers.{at}.downsample"
            four = torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], dim=-1)
            x = norm(four, f"{down}.norm") @ p[f"{down}.reduction.weight"].T
    return norm(x, "norm").mean((0, 1))


def test_equals_the_definition_by_hand(network: SwinTransformer) -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    state = {name: tensor.double() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        got = network(images)
        wanted = torch.stack([by_hand(state, image.double()) for image in images])
    assert got.shape == (2, 768)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-5)


def test_windows_and_back() -> None:
    x = torch.arange(2 * 14 * 14 * 3).view(2, 14, 14, 3)
    cut = window_partition(x)
    assert cut.shape == (8, 49, 3)
    assert torch.equal(cut[1].view(7, 7, 3), x[0, :7, 7:])
    assert torch.equal(window_reverse(cut, x.shape), x)


def test_places_and_regions() -> None:
    index = relative_position_index()
    assert index.shape == (49, 49)
    assert (index[0, 0], index[48, 0], index[0, 48]) == (84, 168, 0)
    mask = shift_mask(14, 3)
    assert mask.shape == (4, 49, 49)
    assert not mask[0].any()  # the first window touches no border that the shift moved
    same = mask[3] == 0
    assert same.sum() == (4 * 4) ** 2 + 2 * (4 * 3) ** 2 + (3 * 3) ** 2


def test_convert_then_encode(
    official: tuple[Path, str],
    network: SwinTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, sha256 = official
    target = tmp_path / "ctranspath.safetensors"
    convert(source, target, {"small": sha256})
    monkeypatch.setattr(CTransPathParams, "checkpoint", ("small", sha256))
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    with safe_open(target, "pt") as file:
        assert set(file.keys()) == set(network.state_dict())
        assert file.metadata() == {"source_sha256": sha256}
    params = CTransPathParams(weights=str(target), device="cpu", batch_size=2)
    encoder = CTransPath(params)
    known = CTransPath.identify(params)
    assert (known.dim, known.hash, known.batch_size) == (768, encoder.hash, 2)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        images = ((torch.from_numpy(tiles) / 255 - mean) / std).permute(0, 3, 1, 2)
        wanted = network(images).half().numpy()
    vectors = encoder(tiles)
    assert (encoder.dim, vectors.shape) == (768, (3, 768))
    np.testing.assert_allclose(vectors.astype(float), wanted.astype(float), atol=2e-3)
    np.testing.assert_array_equal(vectors, encoder(tiles))


def test_another_file_is_not_even_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "ctranspath.pth"
    source.write_bytes(b"cos\nsystem\n(S'touch harmed'\ntR.")
    with pytest.raises(ValueError, match="was not opened: its SHA-256 is"):
        convert(source, tmp_path / "out.safetensors")
    assert main([str(source), str(tmp_path / "out.safetensors")]) == 3
    said = capsys.readouterr().err
    assert "7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539 (ctranspath.pth)" in said
    assert "1646f23001214f74cf432ef0e80b808ee6605143802ae6ed53a87564ddc4924a (CHIEF_CTransPath.pth)" in said
    assert main([str(tmp_path / "absent.pth"), str(tmp_path / "out.safetensors")]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["ctranspath.pth"]


def test_a_checkpoint_of_another_network_is_not_converted(tmp_path: Path) -> None:
    source = tmp_path / "other.pth"
    torch.save({"model": {"head.weight": torch.zeros(1)}}, source)
    with pytest.raises(ValueError, match=r"1 not expected \(head\.weight\)"):
        convert(source, tmp_path / "out.safetensors", {"x": hashlib.sha256(source.read_bytes()).hexdigest()})
    assert not (tmp_path / "out.safetensors").exists()


def test_weights_that_cannot_be_used(official: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"(?s)not named\n.*convert_ctranspath"):
        CTransPath(CTransPathParams())
    with pytest.raises(FileNotFoundError, match="no such file"):
        CTransPath(CTransPathParams(weights=str(tmp_path / "absent.safetensors")))
    with pytest.raises(ValueError, match=r"converted once\n.*convert_ctranspath"):
        CTransPath(CTransPathParams(weights=str(official[0])))
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, file, {"source_sha256": CTransPathParams.checkpoint[1]})
    with pytest.raises(ValueError, match="not the weights of this encoder"):
        CTransPath(CTransPathParams(weights=str(tmp_path)))
    file.write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        CTransPath(CTransPathParams(weights=str(tmp_path)))


def test_the_two_checkpoints_are_not_taken_for_each_other(network: SwinTransformer, tmp_path: Path) -> None:
    """They fit the same network, so only the digest tells them apart."""
    assert ChiefCTransPathParams.checkpoint[1] != CTransPathParams.checkpoint[1]
    files = {}
    for params in (CTransPathParams, ChiefCTransPathParams):
        files[params] = tmp_path / f"{params.encoder}.safetensors"
        save_file(network.state_dict(), files[params], {"source_sha256": params.checkpoint[1]})
    hashes = {CTransPath.identify(params(weights=str(file))).hash for params, file in files.items()}
    assert len(hashes) == 2  # features of both do not share a store, whatever their numbers
    with pytest.raises(ValueError, match=r"from the checkpoint 1646f2.*'ctranspath' needs 7c9986"):
        CTransPath.identify(CTransPathParams(weights=str(files[ChiefCTransPathParams])))
    with pytest.raises(ValueError, match=r"from the checkpoint 7c9986.*'chief_ctranspath' needs 1646f2"):
        CTransPath.identify(ChiefCTransPathParams(weights=str(files[CTransPathParams])))
    own = tmp_path / "own.safetensors"
    save_file(network.state_dict(), own)
    with pytest.raises(ValueError, match=r"does not say what it was converted from.*\n.*sha256"):
        CTransPath.identify(CTransPathParams(weights=str(own)))
    value = hashlib.sha256(own.read_bytes()).hexdigest()
    known = CTransPath.identify(CTransPathParams(weights=str(own), sha256=value))
    assert known.hash in hashes
    with pytest.raises(ValueError, match="was not opened"):
        CTransPath.identify(CTransPathParams(weights=str(own), sha256="0" * 64))


def test_a_checkpoint_without_the_outer_dictionary(network: SwinTransformer, tmp_path: Path) -> None:
    source = tmp_path / "flat.pth"
    torch.save(network.state_dict(), source)
    value = hashlib.sha256(source.read_bytes()).hexdigest()
    convert(source, tmp_path / "out.safetensors", {"flat.pth": value})
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"source_sha256": value}
