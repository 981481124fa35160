import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from equipoise.models.encoders.cards import CARDS
from equipoise.models.encoders.weights import (
    digest,
    find_hub_weights,
    find_local_weights,
    hub_cache,
    load_weights,
    read_weights,
)

UNI, PHIKON = CARDS["uni"], CARDS["phikon_v2"]


def in_cache(home: Path, model: str, revision: str, *files: str) -> Path:
    """A snapshot as the Hugging Face tools lay it out: names linked to blobs without an ending."""
    folder = home / "hub" / f"models--{model.replace('/', '--')}"
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    blob = folder / "blobs" / f"{revision}00"
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(b"weights")
    for file in files:
        (snapshot / file).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/c"}, "/c"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/d"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_place_of_the_cache(environ: dict[str, str], folder: str) -> None:
    assert hub_cache(environ) == Path(folder).expanduser()


def test_found_in_the_cache(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    in_cache(tmp_path, "MahmoodLab/UNI2-h", "0", "pytorch_model.bin")  # another model of similar name
    snapshot = in_cache(tmp_path, "MahmoodLab/uni", "1", "config.json", "model.safetensors")
    assert find_hub_weights(UNI, environ=environ) == snapshot / "model.safetensors"
    (snapshot / "pytorch_model.bin").symlink_to("../../blobs/100")
    assert find_hub_weights(UNI, environ=environ).name == "pytorch_model.bin"  # the published one goes first


def test_the_current_version_counts(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    for revision in ("a", "b"):
        in_cache(tmp_path, "MahmoodLab/UNI", revision, "model.safetensors")
    with pytest.raises(ValueError, match=r"2 versions of MahmoodLab/UNI.*\n.*weights: FOLDER"):
        find_hub_weights(UNI, environ=environ)
    refs = tmp_path / "hub" / "models--MahmoodLab--UNI" / "refs"
    refs.mkdir()
    (refs / "main").write_text("b")
    assert find_hub_weights(UNI, environ=environ).parent.name == "b"


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    with pytest.raises(FileNotFoundError) as gated:
        find_hub_weights(UNI, environ=environ)
    what, fix = str(gated.value).split("\n")
    assert "'uni'" in what
    assert str(tmp_path / "hub") in what
    for hint in (
        "https://huggingface.co/MahmoodLab/UNI",
        "hf auth login",
        "hf download MahmoodLab/UNI",
        "weights: PATH",
    ):
        assert hint in fix
    with pytest.raises(FileNotFoundError) as free:
        find_hub_weights(PHIKON, environ=environ)
    assert "terms" not in str(free.value)
    in_cache(tmp_path, "MahmoodLab/UNI", "1", "config.json")  # a snapshot without weights is none
    with pytest.raises(FileNotFoundError):
        find_hub_weights(UNI, environ=environ)


def test_a_named_path_wins_and_must_be_there(tmp_path: Path) -> None:
    in_cache(tmp_path, "MahmoodLab/UNI", "1", "model.safetensors")
    environ = {"HF_HOME": str(tmp_path)}
    own = tmp_path / "own"
    with pytest.raises(FileNotFoundError, match="no such file"):
        find_hub_weights(UNI, str(own), environ)
    own.mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder has no pytorch_model\.bin or model\.safetensors"):
        find_hub_weights(UNI, str(own), environ)
    (own / "pytorch_model.bin").touch()
    assert find_hub_weights(UNI, str(own), environ) == own / "pytorch_model.bin"
    assert find_local_weights("uni", str(own / "pytorch_model.bin")) == own / "pytorch_model.bin"


@pytest.mark.parametrize("legacy", [False, True])
def test_both_formats_hold_the_same(tmp_path: Path, legacy: bool) -> None:
    state = {"a": torch.randn(3, 4), "b": torch.arange(5).half()}
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    for file in ("model.safetensors", "pytorch_model.bin"):
        read = read_weights(tmp_path / file)
        assert list(read) == ["a", "b"]
        assert all(torch.equal(read[name], state[name]) for name in state)


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return os.putenv, ("EQUIPOISE_WAS_HARMED", "yes")


def test_what_is_no_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"a": Harmful()}, tmp_path / "harmful.bin")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(tmp_path / "harmful.bin")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(tmp_path / "cut.safetensors")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="other things than named tensors"):
        read_weights(tmp_path / "nested.pth")
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ValueError, match=r"not '\.h5'"):
        read_weights(tmp_path / "weights.h5")


def test_wrong_tensors_are_named() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    good = network.state_dict()
    bad = {name: tensor for name, tensor in good.items() if name != "0.bias"}
    bad |= {"head.weight": torch.zeros(1), "1.weight": torch.zeros(7, 7)}
    with pytest.raises(ValueError) as error:
        load_weights(network, bad, "file.bin")
    for part in (
        "file.bin: these are not the weights",
        "1 missing (0.bias)",
        "1 not expected (head.weight)",
        "1 of another shape (1.weight [7, 7] instead of [1, 3])",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"6 not expected \(x0, x1, x2, x3, … 2 more\)"):
        load_weights(network, good | {f"x{k}": torch.zeros(1) for k in range(6)}, "file.bin")


def test_half_precision_weights_become_float32() -> None:
    network = nn.Linear(2, 3)
    load_weights(network, {k: v.half() for k, v in network.state_dict().items()}, "file")
    assert network.weight.dtype == torch.float32


def test_digest_is_of_the_numbers() -> None:
    one, two = nn.Linear(2, 3), nn.Linear(2, 3)
    assert digest(one) != digest(two)
    two.load_state_dict(one.state_dict())
    assert digest(one) == digest(two)
    with torch.no_grad():
        two.bias[1] += 1e-6
    assert digest(one) != digest(two)
