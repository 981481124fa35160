"""The process that opens ``.h5`` files made elsewhere; started by :mod:`equipoise.datasets.store.h5_process`.

A process of its own, because a damaged file can end the HDF5 library: of 3,000 small files with one to three random
bytes changed, one raised a segmentation fault (HDF5 2.0). The process also bounds what a file can cost: memory and
processor time are limited before it is opened, by what it declares once that is known.

Looked at before any value is read: the two data sets must be of the file itself. A soft or external link, external
storage and a virtual data set can name any other file of the machine, whose bytes would then be taken for features.

One request is a line of JSON, ``{"path", "layout", "values"}``. The answer is a line of JSON with ``problem``, or with
layout, shapes and attributes; with ``values``, frames of an 8-byte length and as many bytes follow: features float16
``[N, D]``, then coordinates float64 ``[N, 2]``. The length -1 is followed by a line with the problem instead.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from itertools import islice
from typing import Any, BinaryIO

import h5py
import numpy as np

#: Name of the features → layout; ``coords`` belong to each.
FEATURES = {"feats": "stamp", "features": "trident"}

#: Attributes that are read, of the file or of its data sets.
_ATTRIBUTES = (
    *("unit", "tile_size_um", "tile_size_px", "tile_size", "feat_type", "extractor", "encoder"),
    *("patch_size", "patch_size_level0", "level0_magnification", "target_magnification"),
    *("level0_mpp", "target_mpp", "level0_side"),
)

#: What one slide may have: tiles, length of a vector, bytes of features as float16.
MAX_TILES, MAX_DIM, MAX_BYTES = 10_000_000, 65_536, 16 << 30

#: Features hardly compress. More declared bytes per stored byte than this, and more than ``_SMALL`` of them, is a file
#: that was made to fill the memory of its reader.
_MAX_RATIO, _SMALL = 200, 64 << 20

#: Memory beyond what the process has at the start of a file, and bytes that are read together.
_MARGIN, _BLOCK = 512 << 20, 32 << 20

#: Processor seconds for a file, and bytes that are decoded in one more.
_SECONDS, _BYTES_PER_SECOND = 10.0, 20e6


class _RefusedError(ValueError):
    """A file that is not read; the text is the reason."""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    answers.write(b"ready\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        _limit(0, 0)
        try:
            _answer(request, answers)
        except MemoryError:
            _line(answers, {"problem": "needs more memory than its declared size explains"})
        except _RefusedError as refused:
            _line(answers, {"problem": _clean(str(refused))})
        except (
            Exception
        ) as error:  # HDF5 has an error of its own for every way in which a file can be damaged
            _line(answers, {"problem": f"cannot be read as HDF5: {_clean(_message(error))}"})
        answers.flush()


def _answer(request: dict[str, Any], answers: BinaryIO) -> None:
    with h5py.File(request["path"], "r") as file:
        layout = _layout(file, request["layout"])
        name = next(name for name, its in FEATURES.items() if its == layout)
        features, coords = _data_set(file, name), _data_set(file, "coords")
        shape = _shape(features, coords)
        _line(
            answers,
            {
                "layout": layout,
                "tiles": shape[0],
                "dim": shape[1],
                "attributes": _attributes(file, features, coords),
            },
        )
        if request["values"]:
            try:
                _send(features, shape, np.float16, answers)
                _send(coords, (shape[0], 2), np.float64, answers)
            except Exception as error:
                text = "not enough memory" if isinstance(error, MemoryError) else _message(error)
                answers.write((-1).to_bytes(8, signed=True))
                _line(answers, {"problem": f"cannot be read as HDF5: {_clean(text)}"})


def _layout(file: h5py.File, wanted: str) -> str:
    """Whose file it is, by the name of its features."""
    links = file.id.links
    for name, layout in FEATURES.items():
        if wanted in ("auto", layout) and links.exists(name.encode()) and links.exists(b"coords"):
            return layout
    held = ", ".join(sorted(str(name) for name in islice(file, 20))) or "nothing"
    if wanted == "auto":
        raise _RefusedError(f"holds {held}, neither feats (STAMP) nor features (TRIDENT) and coords")
    name = next(name for name, layout in FEATURES.items() if layout == wanted)
    other = next(name for name, layout in FEATURES.items() if layout != wanted)
    hint = (
        f"; it looks like the other layout: --format {FEATURES[other]}"
        if links.exists(other.encode())
        else ""
    )
    raise _RefusedError(f"holds {held}, not {name} and coords{hint}")


def _data_set(file: h5py.File, name: str) -> h5py.Dataset:
    """Numbers that are stored in this file, opened without following anything out of it."""
    if file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise _RefusedError(f"{name} is a link to another place, not a data set of this file")
    found = h5py.h5o.open(file.id, name.encode())
    if not isinstance(found, h5py.h5d.DatasetID):
        raise _RefusedError(f"{name} is no data set, but a {type(found).__name__.removesuffix('ID').lower()}")
    plist = found.get_create_plist()
    if plist.get_external_count():
        raise _RefusedError(f"{name} takes its values from another file (external storage)")
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        raise _RefusedError(f"{name} takes its values from other files (a virtual data set)")
    if found.get_type().get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        raise _RefusedError(f"{name} does not hold numbers")
    for at in range(plist.get_nfilters()):
        code = plist.get_filter(at)[0]
        if not h5py.h5z.filter_avail(code):
            raise _RefusedError(f"{name} is compressed by filter {code}, which is not installed")
    return h5py.Dataset(found)


def _shape(features: h5py.Dataset, coords: h5py.Dataset) -> tuple[int, int]:
    """Tiles and length of a vector, after everything about sizes was checked; sets the limits for reading."""
    shapes = [data.shape for data in (features, coords)]
    if any(shape is None for shape in shapes):
        raise _RefusedError("features or coords are an empty data space without a shape")
    # Some releases keep the dimension of a batch of one slide.
    plain = [shape[1:] if len(shape) == 3 and shape[0] == 1 else shape for shape in shapes]
    if len(plain[0]) != 2 or len(plain[1]) != 2 or plain[0][0] != plain[1][0] or plain[1][1] != 2:
        raise _RefusedError(
            f"features {shapes[0]} and coords {shapes[1]} do not fit: [tiles, numbers] and [tiles, 2]"
        )
    tiles, dim = int(plain[0][0]), int(plain[0][1])
    if tiles and not dim:
        raise _RefusedError(f"its {tiles} vectors have no numbers")
    if tiles > MAX_TILES or dim > MAX_DIM or 2 * tiles * dim > MAX_BYTES:
        raise _RefusedError(
            f"declares {tiles} tiles of {dim} numbers; at most {MAX_TILES} of {MAX_DIM} and {MAX_BYTES >> 30} GiB"
        )
    _limit(
        max(_checked_bytes(features, "features"), _checked_bytes(coords, "coords")),
        features.nbytes + coords.nbytes,
    )
    return tiles, dim


def _checked_bytes(data: h5py.Dataset, name: str) -> int:
    """Bytes that are decoded together, after declared and stored size were compared."""
    stored, declared = int(data.id.get_storage_size()), int(data.nbytes)
    band = declared
    if data.chunks is not None:
        chunk = math.prod(data.chunks) * data.dtype.itemsize
        band = max(chunk, chunk * -(-data.shape[-1] // data.chunks[-1]))
        wanted = math.prod(-(-size // part) for size, part in zip(data.shape, data.chunks, strict=True))
        there = data.id.get_num_chunks()
        if there < wanted:
            raise _RefusedError(
                f"{name}: {there} of {wanted} chunks were written, the file was never finished"
            )
    if declared and not stored:
        raise _RefusedError(f"{name} declares {declared} bytes and stores none: the file was never finished")
    largest = max(declared, band)
    if largest > _SMALL and largest > _MAX_RATIO * stored:
        raise _RefusedError(
            f"{name} declares {largest} bytes and stores {stored}: no features compress like that"
        )
    return min(band, _BLOCK) if data.chunks is None else band


def _send(data: h5py.Dataset, shape: tuple[int, int], kind: type[np.generic], answers: BinaryIO) -> None:
    """The values as ``kind``, in frames of whole rows."""
    row = max(1, shape[1] * max(data.dtype.itemsize, np.dtype(kind).itemsize))
    rows = max(1, _BLOCK // row)
    if data.chunks is not None:
        rows = -(-rows // data.chunks[-2]) * data.chunks[-2]
    for start in range(0, shape[0], rows):
        part = slice(start, min(start + rows, shape[0]))
        values = np.asarray(data[0, part] if data.ndim == 3 else data[part])
        with np.errstate(
            all="ignore"
        ):  # what is too large for float16 becomes infinite and is counted by the caller
            frame = np.ascontiguousarray(values, dtype=kind)
        answers.write(frame.nbytes.to_bytes(8, signed=True))
        answers.write(frame.data)


def _attributes(*objects: Any) -> dict[str, float | str]:
    """Numbers and texts; later objects win, as attributes of ``coords`` say more than those of the file."""
    found: dict[str, float | str] = {}
    for each in objects:
        for name in _ATTRIBUTES:
            if not h5py.h5a.exists(each.id, name.encode()):
                continue
            attribute = h5py.h5a.open(each.id, name.encode())
            if attribute.get_storage_size() > 65_536:
                raise _RefusedError(f"attribute {name} has {attribute.get_storage_size()} bytes")
            found[name] = _plain(each.attrs[name])
    return found


def _plain(value: Any) -> float | str:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, int | float) else _clean(str(value), 200)


def _clean(text: str, most: int = 400) -> str:
    """Text of a file for people: printable, valid Unicode, of bounded length."""
    text = text[:most].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _message(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _line(answers: BinaryIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content).encode() + b"\n")


def _limit(band: int, declared: int) -> None:
    """Bound memory and processor time of what follows; the process ends if the latter is used up."""
    signal.setitimer(signal.ITIMER_PROF, _SECONDS + declared / _BYTES_PER_SECOND)
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = now + _MARGIN + 4 * band
        resource.setrlimit(
            resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
    except (OSError, ValueError):  # no such file outside Linux, where the limit is not enforced either
        return


def main() -> None:
    """Serve standard input; only answers reach standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; the end of its requests ends this
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
