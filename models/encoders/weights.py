"""Locate weights on this machine, read them, and check that they belong to the encoder.

Nothing here opens a connection: weights come from a path that the study names or from what the Hugging Face tools have
downloaded before. A file has to have the digest of the published one. It is read as tensors and nothing else
(safetensors, or ``torch.load(weights_only=True)``).

Messages of two lines: what is wrong, then what to do.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class HubFile(Protocol):
    """A card, as far as finding its weights goes: of a tile encoder or of a slide encoder.

    Attributes
    ----------
    name, hub, file, gated
        As of :class:`~equipoise.models.encoders.card.ModelCard`.
    section
        Where a study sets parameters of this kind of encoder, for messages.
    """

    @property
    def name(self) -> str: ...
    @property
    def hub(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def gated(self) -> bool: ...
    @property
    def section(self) -> str: ...


#: Names of weights files in a folder, the preferred first; the name of the published file goes before them.
FILES = ("model.safetensors", "pytorch_model.bin")
_SAFE, _TORCH = (".safetensors",), (".bin", ".pt", ".pth", ".tar")  # .tar: of torch, many are .pth.tar
_SHOWN = 4


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Folder of the Hugging Face cache, by the environment variables of its tools."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(environ[name]).expanduser()
    home = environ.get("HF_HOME")
    if not home:
        home = str(Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(home).expanduser() / "hub"


def find_hub_weights(
    card: HubFile, weights: str | None = None, environ: Mapping[str, str] = os.environ
) -> Path:
    """The weights file of a hub encoder.

    Parameters
    ----------
    card
        The encoder.
    weights
        A file or folder; ``None``: what the Hugging Face cache has.
    environ
        Variables that say where the cache is.

    Raises
    ------
    FileNotFoundError
        If there is none, with how to get it.
    ValueError
        If the cache holds several versions and none of them is the current one.
    """
    if weights is not None:
        return find_local_weights(card.name, weights, _names(card), card.section)
    cache = hub_cache(environ)
    path = _in_cache(cache, card)
    if path is not None:
        return path
    terms = f"accept the terms at https://huggingface.co/{card.hub}, then `hf auth login` and "
    raise FileNotFoundError(
        f"the weights of encoder {card.name!r} are not on this machine: no {' or '.join(_names(card))} of "
        f"{card.hub} below {cache}\n"
        f"{terms if card.gated else ''}`hf download {card.hub} {card.file}`; or name a file or folder: "
        f"features: {{{card.section}: {{weights: PATH}}}}"
    )


def _names(card: HubFile) -> tuple[str, ...]:
    """Names of the file, the published one first; each once."""
    return tuple(dict.fromkeys((card.file, *FILES)))


def find_local_weights(
    name: str, weights: str, files: Sequence[str] = FILES, section: str = "encoder_params"
) -> Path:
    """The weights file that a path means: the file itself, or the first of ``files`` in a folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    for file in files:
        if (path / file).is_file():
            return path / file
    what = f"the folder has no {' or '.join(files)}" if path.is_dir() else "there is no such file or folder"
    raise FileNotFoundError(
        f"weights of encoder {name!r}: {path}: {what}\ncorrect `weights` in features.{section} "
        "(an absolute path: workers may run in another folder)"
    )


def _in_cache(cache: Path, card: HubFile) -> Path | None:
    """The file of the current snapshot, or of the only one."""
    wanted = f"models--{card.hub.replace('/', '--')}".lower()  # the hub does not tell capitals apart
    models = sorted(cache.glob("models--*"))
    for model in models:
        if model.name.lower() != wanted:
            continue
        paths = {}
        for snapshot in sorted(model.glob("snapshots/*")):
            files = [snapshot / file for file in _names(card) if (snapshot / file).is_file()]
            if files:
                paths[snapshot.name] = files[0]
        main = model / "refs" / "main"
        current = main.read_text("utf-8").strip() if main.is_file() else None
        if current in paths:
            return paths[current]
        if len(paths) > 1:
            raise ValueError(
                f"the cache holds {len(paths)} versions of {card.hub} and none of them is marked as current: {model}\n"
                f"name one: features: {{{card.section}: {{weights: FOLDER OF A SNAPSHOT}}}}"
            )
        if paths:
            return next(iter(paths.values()))
    return None


def check_file(path: Path, wanted: str | None, name: str, section: str = "encoder_params") -> None:
    """Compare the SHA-256 of a file with that of the published one, before anything in it is interpreted.

    Parameters
    ----------
    path
        The file.
    wanted
        The digest; ``None``: none is known, and any file will do.
    name, section
        Of the encoder and its parameters in a study, for the message.

    Raises
    ------
    ValueError
        If it is another file, with how to use it all the same.
    """
    if wanted is None:
        return
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    if value != wanted:
        raise ValueError(
            f"{path}: this is not the weights file of encoder {name!r} and was not opened: its SHA-256 is {value}, "
            f"not {wanted}\n"
            "download the published file again; if you mean this file, say so: "
            f"features: {{{section}: {{sha256: {value}}}}}"
        )


def read_weights(path: Path, nested: Sequence[str] = ()) -> dict[str, Tensor]:
    """Tensors of a file by name, on the CPU and mapped into memory where the format allows it.

    Parameters
    ----------
    path
        The file.
    nested
        Keys that lead to the tensors in a file of dictionaries; what lies beside them is not looked at.

    Raises
    ------
    ValueError
        If the file holds anything else, is damaged or of an unknown kind.
    """
    state = read_tensors(path)
    for key in nested:
        if not isinstance(state, dict) or key not in state:
            raise ValueError(f"{path}: has no {'.'.join(nested)}\nname the published weights file")
        state = state[key]
    return require_tensors(state, path)


def read_tensors(path: Path) -> Any:
    """Contents of a file: tensors by name, or dictionaries of them; on the CPU, mapped where the format allows it.

    Raises
    ------
    ValueError
        If the file is damaged or of an unknown kind, or would have to run code.
    """
    import torch
    from safetensors.torch import load_file

    if path.suffix not in _SAFE + _TORCH:
        raise ValueError(
            f"{path}: weights are {', '.join(_SAFE + _TORCH)}, not {path.suffix!r}\nname another file"
        )
    try:
        if path.suffix in _SAFE:
            return load_file(path)
        mapped = zipfile.is_zipfile(path)  # what torch wrote before 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # both libraries raise a dozen kinds for damaged files
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: cannot be read as weights: {reason}\ndownload the file again") from error


def require_tensors(state: Any, path: Path) -> dict[str, Tensor]:
    """The same, if it is a dictionary of tensors; raises :class:`ValueError` otherwise."""
    import torch

    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f"{path}: holds other things than named tensors\nname the published weights file")
    return state


def renamed(
    state: Mapping[str, Tensor], renames: Iterable[tuple[str, str]], drops: tuple[str, ...]
) -> dict[str, Tensor]:
    """Tensors under other names.

    Parameters
    ----------
    state
        Names to tensors.
    renames
        Prefixes and what stands for them; the first that fits counts, once.
    drops
        Prefixes of names that are left out. Names that nothing fits stay as they are.
    """
    renames = tuple(renames)
    return {_renamed(name, renames): t for name, t in state.items() if not name.startswith(drops)}


def _renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    for theirs, ours in renames:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def load_weights(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Put weights into a network, all of them and nothing else; numbers become float32.

    Raises
    ------
    ValueError
        Naming tensors that are missing, not expected or of another shape.
    """
    _require_same(network.state_dict(), state, where)
    network.load_state_dict({name: _number(t) for name, t in state.items()}, strict=True, assign=True)


def _number(tensor: Tensor) -> Tensor:
    """Numbers as float32, counters as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _require_same(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """The same names and shapes; raises :class:`ValueError` as :func:`load_weights` does."""
    problems = [
        _named("missing", [name for name in wanted if name not in state]),
        _named("not expected", [name for name in state if name not in wanted]),
        _named(
            "of another shape",
            [
                f"{name} {list(state[name].shape)} instead of {list(tensor.shape)}"
                for name, tensor in wanted.items()
                if name in state and state[name].shape != tensor.shape
            ],
        ),
    ]
    if any(problems):
        raise ValueError(
            f"{where}: these are not the weights of this encoder: {'; '.join(filter(None, problems))}\n"
            "name the published weights file of the encoder"
        )


def _named(problem: str, names: list[str]) -> str:
    """``"2 missing (a, b)"``, or nothing."""
    if not names:
        return ""
    more = f", … {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {problem} ({', '.join(names[:_SHOWN])}{more})"


def digest(network: nn.Module) -> str:
    """SHA-256 of a network's weights: equal for equal numbers, whatever file they came in."""
    return _digest(sorted(network.state_dict().items()))


def digest_unloaded(network: nn.Module, state: Mapping[str, Tensor], where: str) -> str:
    """:func:`digest` of the network that :func:`load_weights` would make, without making it.

    Reads the file once and holds one tensor at a time where ``state`` is mapped into memory.

    Parameters
    ----------
    network
        Names and shapes: may be on the device ``meta``.
    state, where
        As for :func:`load_weights`.

    Raises
    ------
    ValueError
        As :func:`load_weights`.
    """
    _require_same(network.state_dict(), state, where)
    return _digest((name, _number(state[name])) for name in sorted(state))


def _digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Of tensors in the order of their names."""
    total = hashlib.sha256()
    for name, tensor in named:
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()
