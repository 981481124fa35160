"""Slides and ``.h5`` files that are damaged, hostile or something else."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bad_input_template import CONFIG, SLIDES, Build, Work, damaged, tables_of


def slides() -> Iterator[tuple]:
    """Files that are no slide, damaged ones, and impossible pixel sizes; read as ``equipoise.api`` reads a slide."""

    def read(write: Callable[[Path], Path], mpp: float | None = 0.5) -> Build:
        def build(folder: Path, template: Path) -> Work:
            path = write(folder)

            def work() -> str:
                from equipoise.datasets.slides.problems import STATUSES
                from equipoise.models.encoders.handcrafted import Handcrafted
                from equipoise.platform.extraction.params import ExtractionParams
                from equipoise.platform.extraction.single_slide import extract_one_slide

                params = ExtractionParams.model_validate({"encoder": "handcrafted"})
                taken = extract_one_slide(path, Handcrafted(), params, mpp)
                if taken.status not in STATUSES or (taken.status != "ok" and not taken.error):
                    raise RuntimeError(f"status {taken.status!r} without a reason")
                if taken.status == "ok":
                    return f"ok {len(taken.features)}"
                raise ValueError(f"{taken.status}: {taken.error}")

            return work

        return build

    def tiff(**options: Any) -> bytes:
        import io

        from PIL import Image

        draw = np.random.default_rng(3)
        pixels = draw.integers(120, 230, (600, 700, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "TIFF", **options)
        return data.getvalue()

    def as_file(data: bytes, name: str = "a.tif") -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            (folder / name).write_bytes(data)
            return folder / name

        return write

    draw = random.Random(5)
    for name, data in {
        "empty": b"",
        "text": b"hello\n" * 100,
        "zeros": bytes(5000),
        "a zip": b"PK\x03\x04" + bytes(400),
        "PNG head": b"\x89PNG\r\n\x1a\n" + bytes(200),
    }.items():
        for ending in ("svs", "tif", "ndpi", "mrxs", "dcm", "scn"):
            yield f"{name} as .{ending}", read(as_file(data, f"a.{ending}"))
    for i in range(40):
        how, seed = draw.choice(["cut", "flip", "flip", "noise"]), draw.randrange(2**31)

        def broken(folder: Path, how: str = how, seed: int = seed) -> Path:
            (folder / "a.tif").write_bytes(damaged(tiff(), how, random.Random(seed)))
            return folder / "a.tif"

        yield f"a TIFF, {how} {i}", read(broken), "answered"
    for mpp in (0.0, -1.0, float("inf"), 1e-9, 1e9, 500.0):
        yield f"{mpp:g} um/px", read(as_file(tiff()), mpp)
    yield "a folder", read(lambda folder: folder)
    yield "absent", read(lambda folder: folder / "nothing.svs")
    yield "a link to nothing", read(lambda folder: _link(folder / "a.svs", "nowhere"))
    yield "a pipe", read(lambda folder: _pipe(folder / "a.svs"))


def _link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def h5_files() -> Iterator[tuple]:
    """Imported features: each damaged file is one row, the others are imported."""

    def with_file(change: Callable[[Path], None], count: int = 1) -> Build:
        def build(folder: Path, template: Path) -> Work:
            tables_of(folder, template)
            (folder / "h5").unlink()
            shutil.copytree(template / "h5", folder / "h5")
            for name in SLIDES[:count]:
                change(folder / "h5" / f"{name}.h5")
            return ["extract", *CONFIG]

        return build

    draw = random.Random(11)
    for i in range(60):
        how, seed = draw.choice(["cut", "flip", "flip", "noise", "empty"]), draw.randrange(2**31)

        def change(path: Path, how: str = how, seed: int = seed) -> None:
            path.write_bytes(damaged(path.read_bytes(), how, random.Random(seed)))

        yield f"{how} {i}", with_file(change), "answered" if how == "flip" else "remarked", "unreadable=1"

    def rewrite(**parts: Any) -> Callable[[Path], None]:
        def change(path: Path) -> None:
            import h5py

            with h5py.File(path, "a") as file:
                for name, value in parts.items():
                    if name in file:
                        del file[name]
                    if callable(value):
                        value(file)
                    elif value is not None:
                        file[name] = value

        return change

    bad: dict[str, Any] = {
        "no feats": {"feats": None},
        "no coords": {"coords": None},
        "text feats": {"feats": np.array([b"a"] * 12)},
        "one axis": {"feats": np.zeros(12, np.float32)},
        "three axes": {"feats": np.zeros((12, 2, 4), np.float32)},
        "zero columns": {"feats": np.zeros((12, 0), np.float32)},
        "other lengths": {"feats": np.zeros((7, 8), np.float32)},
        "a group": {"feats": lambda file: file.create_group("feats")},
        "NaN": {"feats": np.full((12, 8), np.nan, np.float32)},
        "infinite": {"feats": np.full((12, 8), np.inf, np.float32)},
        "too large for half precision": {"feats": np.full((12, 8), 1e6, np.float32)},
        "NaN coordinates": {"coords": np.full((12, 2), np.nan)},
        "huge coordinates": {"coords": np.full((12, 2), 2.0**40)},
        "negative coordinates": {"coords": np.full((12, 2), -5000.0)},
        "coordinates of one column": {"coords": np.zeros((12, 1))},
        "complex": {"feats": np.zeros((12, 8), np.complex64)},
        "other width": {"feats": np.zeros((12, 5), np.float32)},
        "booleans": {"feats": np.zeros((12, 8), bool)},
        "a soft link": {"feats": lambda file: file.__setitem__("feats", _soft())},
        "an external link": {"feats": lambda file: file.__setitem__("feats", _external())},
        "external storage": {
            "feats": lambda file: file.create_dataset("feats", (4, 8), "f4", external="/etc/passwd")
        },
        "a bomb": {
            "feats": lambda file: file.create_dataset(
                "feats", (2_000_000, 4096), "f4", compression="gzip", fillvalue=0
            )
        },
        "no tile": {"feats": np.zeros((0, 8), np.float32), "coords": np.zeros((0, 2))},
    }
    for name, parts in bad.items():
        word = {"no tile": "no_tissue", "other width": ""}.get(name, "unreadable=1")
        yield name, with_file(rewrite(**parts)), "remarked" if word else "answered", word
    for name, value in {
        "text": "wide",
        "zero": 0.0,
        "negative": -3.0,
        "NaN": float("nan"),
        "huge": 1e30,
        "a list": [1.0, 2.0],
    }.items():

        def attribute(path: Path, value: Any = value) -> None:
            import h5py

            with h5py.File(path, "a") as file:
                file.attrs["tile_size_um"] = value

        yield f"tile_size_um: {name}", with_file(attribute), "answered"
    for name in ("../../evil", "/evil", "a/b", "..", "x" * 400, "a\x01b", ""):

        def other(folder: Path, template: Path, name: str = name) -> Work:
            tables_of(folder, template)
            return [
                "store",
                "import",
                "h5",
                "--format",
                "stamp",
                "--out",
                "st",
                "--encoder",
                name,
                "--mpp",
                "0.5",
                "--px",
                "256",
            ]

        yield f"encoder {name[:12]!r}", other, "answered" if name == "x" * 400 else "refused", ""


def _soft() -> Any:
    import h5py

    return h5py.SoftLink("/coords")


def _external() -> Any:
    import h5py

    return h5py.ExternalLink("/etc/passwd", "/x")
