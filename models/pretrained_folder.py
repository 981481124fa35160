"""The folder of a pre-trained model: ``config.json``, ``model.safetensors`` and ``seen.json``.

It holds a model that reads tiles of slides, its heads included, with what has to be known to use it: the model and its
parameters, the tile features that it reads, its tasks. Read as text and tensors only. Messages of two lines: what is
wrong, then what to do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "equipoise-pretrained/1"
CONFIG, WEIGHTS, SEEN = "config.json", "model.safetensors", "seen.json"
#: Resolutions that differ by less are the same.
_MPP_TOLERANCE = 0.02


@dataclass(frozen=True)
class TrainedTiles:
    """The tile features that a model was trained on.

    Attributes
    ----------
    encoder, encoder_hash
        Name of the encoder, and digest of its definition and weights, as the feature store has them.
    dim
        Length of a feature vector.
    mpp, tile_px
        um per pixel, side of a tile in px.
    """

    encoder: str
    encoder_hash: str
    dim: int
    mpp: float
    tile_px: int

    def differences(self, other: TrainedTiles) -> list[str]:
        """``"0.5 um/px, not 1"`` for everything in which other features differ from these."""
        found = []
        if self.encoder != other.encoder:
            found.append(f"features of {self.encoder}, not of {other.encoder}")
        elif self.encoder_hash != other.encoder_hash:
            found.append(
                f"{self.encoder} {self.encoder_hash[:12]}, not {other.encoder_hash[:12]} (other weights or settings)"
            )
        if self.dim != other.dim:
            found.append(f"{self.dim} features per tile, not {other.dim}")
        if abs(self.mpp / other.mpp - 1) > _MPP_TOLERANCE:
            found.append(f"{self.mpp:g} um/px, not {other.mpp:g}")
        if self.tile_px != other.tile_px:
            found.append(f"tiles of {self.tile_px} px, not {other.tile_px}")
        return found


@dataclass(frozen=True)
class PretrainedFolder:
    """What the folder of a pre-trained model says.

    Attributes
    ----------
    path
        Where it is.
    fingerprint
        SHA-256 of model, parameters, tile features, tasks and weights.
    model, model_params
        Name of the model, and its parameters.
    tiles
        The tile features that it reads.
    tasks
        Names of its tasks, in the order of its heads.
    record
        How it came about: cohorts, patients, epochs, balancing, losses.
    """

    path: Path
    fingerprint: str
    model: str
    model_params: dict[str, Any]
    tiles: TrainedTiles
    tasks: tuple[str, ...]
    record: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, on the CPU.

        Raises
        ------
        ValueError
            If they are not those that the folder was written with.
        """
        from safetensors.torch import load_file

        tensors = load_file(self.path / WEIGHTS)
        if _fingerprint(self.model, self.model_params, self.tiles, self.tasks, tensors) != self.fingerprint:
            raise ValueError(
                f"{self.path}: weights and config.json do not belong together\n"
                "take the whole folder that `equipoise pretrain` wrote"
            )
        return tensors


def read_pretrained(folder: str | Path) -> PretrainedFolder:
    """What a folder says; its weights are not read.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If it holds something else.
    """
    path = Path(folder).expanduser()
    if missing := [name for name in (CONFIG, WEIGHTS, SEEN) if not (path / name).is_file()]:
        what = f"{path} has no {', '.join(missing)}" if path.is_dir() else f"there is no folder {path}"
        raise FileNotFoundError(
            f"{what}\nname the folder of a pre-trained model: runs/<study>/pretrain/model of `equipoise pretrain`"
        )
    try:
        content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
        return PretrainedFolder(
            path,
            content["fingerprint"],
            content["model"],
            content["model_params"],
            TrainedTiles(**content["tiles"]),
            tuple(content["tasks"]),
            content["record"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path / CONFIG} describes no pre-trained model: {error}\n"
            "name the folder that `equipoise pretrain` wrote"
        ) from error


def write_pretrained(
    path: Path,
    tensors: dict[str, Tensor],
    *,
    model: str,
    model_params: dict[str, Any],
    tiles: TrainedTiles,
    tasks: tuple[str, ...],
    record: dict[str, Any],
    seen: dict[str, Any],
) -> PretrainedFolder:
    """Write the files into a new folder; attributes as of :class:`PretrainedFolder`.

    Parameters
    ----------
    path
        A folder that does not exist yet.
    tensors
        State dictionary of the model, heads included.
    seen
        Content of ``seen.json``: whom the model has seen.
    """
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    model_params = json.loads(json.dumps(model_params))
    fingerprint = _fingerprint(model, model_params, tiles, tasks, tensors)
    save_file(tensors, path / WEIGHTS)
    content = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "model": model,
        "model_params": model_params,
        "tiles": asdict(tiles),
        "tasks": list(tasks),
        "record": record,
    }
    (path / SEEN).write_text(json.dumps(seen, indent=1) + "\n", encoding="utf-8")
    (path / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return PretrainedFolder(path, fingerprint, model, model_params, tiles, tasks, record)


def _fingerprint(
    model: str,
    model_params: dict[str, Any],
    tiles: TrainedTiles,
    tasks: tuple[str, ...],
    tensors: dict[str, Tensor],
) -> str:
    """SHA-256 of what decides the outputs of the model."""
    total = hashlib.sha256()
    about = {"model": model, "params": model_params, "tiles": asdict(tiles), "tasks": list(tasks)}
    total.update(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
