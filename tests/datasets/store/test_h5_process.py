"""Files of strangers: what is refused before a value is read, and what ends the library that reads it."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.h5_files import grid_step, read_h5
from equipoise.datasets.store.h5_process import H5Reader

ABOUT = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
GRID = np.stack([np.arange(20) % 5, np.arange(20) // 5], axis=1) * 512
FEATURES = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def reader() -> Iterator[H5Reader]:
    with H5Reader() as reader:
        yield reader


def plain(
    path: Path, features: np.ndarray | None = FEATURES, coords: np.ndarray | None = GRID, **about: object
) -> Path:
    """A file of TRIDENT; without ``features`` or ``coords`` for callers that add their own."""
    with h5py.File(path, "w") as file:
        if features is not None:
            file["features"] = features
        if coords is not None:
            file["coords"] = coords
            file["coords"].attrs.update(ABOUT | about)
    return path


def test_a_good_file(reader: H5Reader, tmp_path: Path) -> None:
    tiles = read_h5(reader, plain(tmp_path / "a.h5"))
    np.testing.assert_array_equal(tiles.features, FEATURES.astype(np.float16))
    assert tiles.x.tolist() == GRID[:, 0].tolist()
    assert (tiles.layout, tiles.tile_px, tiles.level0_px, tiles.mpp) == ("trident", 256, 512, 0.25)


def test_rows_and_chunks_of_a_large_file_arrive_in_order(reader: H5Reader, tmp_path: Path) -> None:
    """More than one frame, chunks that do not divide the rows, a leading dimension of one slide."""
    features = np.arange(70_000 * 64, dtype=np.float32).reshape(1, 70_000, 64) % 2048
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=features.astype(np.float16), chunks=(1, 999, 17), compression=1)
        file["coords"] = np.arange(140_000).reshape(1, 70_000, 2) * 50
        file["coords"].attrs.update(ABOUT)
    tiles = read_h5(reader, tmp_path / "a.h5")
    np.testing.assert_array_equal(tiles.features, features[0])
    np.testing.assert_array_equal(tiles.y, np.arange(1, 140_000, 2) * 50)


def external_storage(path: Path, secret: Path) -> None:
    plain(path, features=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("features", (20, 8), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def external_link(path: Path, secret: Path) -> None:
    plain(path.with_name("other.hdf5"))
    plain(path, features=None)
    with h5py.File(path, "a") as file:
        file["features"] = h5py.ExternalLink("other.hdf5", "features")


def soft_link(path: Path, secret: Path) -> None:
    plain(path, features=None)
    with h5py.File(path, "a") as file:
        file["hidden"] = FEATURES
        file["features"] = h5py.SoftLink("/hidden")


def virtual(path: Path, secret: Path) -> None:
    other = plain(path.with_name("other.hdf5"))
    plain(path, features=None)
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout((20, 8), "f4")
        layout[:] = h5py.VirtualSource(str(other), "features", (20, 8))
        file.create_virtual_dataset("features", layout)


def bomb(path: Path, secret: Path) -> None:
    plain(path, features=None, coords=None)
    with h5py.File(path, "a") as file:
        zeros = np.zeros((70_000, 256), np.float32)
        file.create_dataset("features", data=zeros, chunks=(20_000, 256), compression=9)
        file["coords"] = np.zeros((70_000, 2), np.int32)


def endless(path: Path, secret: Path) -> None:
    plain(path, features=None, coords=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("features", (10**9, 4096), "f2", chunks=(1, 4096))
        file.create_dataset("coords", (10**9, 2), "i4", chunks=(1024, 2))


def unfinished(path: Path, secret: Path) -> None:
    plain(path, features=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("features", (20, 8), "f4", chunks=(5, 8))[:10] = FEATURES[:10]


def unwritten(path: Path, secret: Path) -> None:
    plain(path, features=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("features", (20, 8), "f4")


def group(path: Path, secret: Path) -> None:
    plain(path, features=None)
    with h5py.File(path, "a") as file:
        file.create_group("features")


def texts(path: Path, secret: Path) -> None:
    plain(path, np.array([[b"1"] * 8] * 20))


def large_attribute(path: Path, secret: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:  # older headers hold 64 KiB
        file["features"], file["coords"] = FEATURES, GRID
        file["coords"].attrs.update(ABOUT)
        file.attrs.create("encoder", np.zeros(100_000, "S1"))


MADE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "external storage": (external_storage, "takes its values from another file"),
    "external link": (external_link, "link to another place"),
    "soft link": (soft_link, "link to another place"),
    "virtual data set": (virtual, "takes its values from other files"),
    "bomb": (bomb, "no features compress like that"),
    "endless": (endless, "declares 1000000000 tiles"),
    "unfinished": (unfinished, "2 of 4 chunks were written"),
    "unwritten": (unwritten, "stores none"),
    "group": (group, "features is no data set, but a group"),
    "text": (texts, "features does not hold numbers"),
    "large attribute": (large_attribute, "attribute encoder has 100000 bytes"),
    "no columns": (lambda path, _: plain(path, np.ones((20, 0))), "its 20 vectors have no numbers"),
    "three columns": (lambda path, _: plain(path, coords=np.zeros((20, 3))), "do not fit"),
    "other rows": (lambda path, _: plain(path, coords=GRID[:19]), "do not fit"),
    "flat": (lambda path, _: plain(path, FEATURES[:, 0]), "do not fit"),
    "scalar": (lambda path, _: plain(path, np.float32(1)), "do not fit"),
    "complex": (lambda path, _: plain(path, FEATURES.astype(complex)), "does not hold numbers"),
    "NaN corner": (lambda path, _: plain(path, coords=GRID * np.nan), "coords of 20 of 20 tiles"),
    "huge corner": (lambda path, _: plain(path, coords=GRID + 2**33), "coords of 20 of 20 tiles"),
    "negative corner": (lambda path, _: plain(path, coords=GRID - 600), "coords of 8 of 20 tiles"),
    "text attribute": (lambda path, _: plain(path, level0_magnification="40x"), "is '40x', not a positive"),
    "array attribute": (lambda path, _: plain(path, patch_size=[256, 256]), "patch_size is '[256 256]', not"),
    "infinite attribute": (
        lambda path, _: plain(path, target_magnification=np.inf),
        "is inf, not a positive",
    ),
    "negative attribute": (lambda path, _: plain(path, patch_size_level0=-512), "is -512, not a positive"),
    "absurd resolution": (lambda path, _: plain(path, level0_mpp=400.0), "400 is outside 0.05-50"),
    "absurd side": (lambda path, _: plain(path, patch_size=10**6), "1e+06 is outside 1-16384"),
    "contradiction": (lambda path, _: plain(path, patch_size_level0=51_200), "contradicts itself"),
    "nothing": (lambda path, _: path.write_bytes(b""), "cannot be read as HDF5"),
    "text file": (lambda path, _: path.write_text("no HDF5 " * 100), "cannot be read as HDF5"),
    "folder": (lambda path, _: path.mkdir(), "is no regular file"),
    "pipe": (lambda path, _: os.mkfifo(path), "is no regular file"),
    "dangling link": (lambda path, _: path.symlink_to("nowhere"), "no such file"),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_is_refused_and_why(reader: H5Reader, tmp_path: Path, kind: str) -> None:
    make, says = MADE[kind]
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 4096)
    make(tmp_path / "a.h5", secret)
    with pytest.raises(DataError) as caught:
        read_h5(reader, tmp_path / "a.h5")
    assert says in caught.value.what
    assert caught.value.where == str(tmp_path / "a.h5")


def test_a_library_that_dies_is_a_reason_and_the_next_file_is_read(reader: H5Reader, tmp_path: Path) -> None:
    plain(tmp_path / "a.h5")
    reader.header(tmp_path / "a.h5")
    assert reader._process is not None
    reader._process.kill()
    reader._process.wait()
    with pytest.raises(DataError, match=r"ends the HDF5 library \(SIGKILL\)"):
        reader.header(tmp_path / "a.h5")
    assert reader.header(tmp_path / "a.h5").tiles == 20


def test_a_process_at_its_limit_of_time_is_a_reason(reader: H5Reader, tmp_path: Path) -> None:
    """The kernel's timer ends it with this signal."""
    plain(tmp_path / "a.h5")
    reader.header(tmp_path / "a.h5")
    assert reader._process is not None
    reader._process.send_signal(signal.SIGPROF)
    reader._process.wait()
    with pytest.raises(DataError, match="far more time"):
        reader.header(tmp_path / "a.h5")


def test_a_process_that_does_not_start_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain(tmp_path / "a.h5")
    monkeypatch.setattr("equipoise.datasets.store.h5_process._SERVER", "no_such_module")
    with H5Reader() as other, pytest.raises(DataError, match="does not start: .*no_such_module"):
        other.header(tmp_path / "a.h5")


def test_layout_without_attributes_takes_its_scale_from_the_grid(reader: H5Reader, tmp_path: Path) -> None:
    """CLAM and GigaPath: features and corners, nothing else; mpp and side are stated."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = FEATURES, GRID + 77
    with pytest.raises(DataError, match="does not say patch_size"):
        read_h5(reader, tmp_path / "a.h5")
    tiles = read_h5(reader, tmp_path / "a.h5", mpp=0.5, tile_px=256)
    assert (tiles.target_mpp, tiles.tile_px, tiles.mpp, tiles.level0_px) == (0.5, 256, 0.25, 512)
    with h5py.File(
        tmp_path / "one.h5", "w"
    ) as file:  # a single tile has no grid: its pixels are those of level 0
        file["features"], file["coords"] = FEATURES[:1], GRID[:1]
    alone = read_h5(reader, tmp_path / "one.h5", mpp=0.5, tile_px=256)
    assert (alone.mpp, alone.level0_px) == (0.5, 256)


def test_steps_of_grids() -> None:
    rng = np.random.default_rng(1)
    cells = np.unique(rng.integers(0, 40, (300, 2)), axis=0)
    assert grid_step(cells * 443.213 + 12.5) == pytest.approx(443.213)
    assert grid_step(rng.uniform(0, 1e5, (300, 2))) is None
    assert grid_step(np.zeros((5, 2))) is None
    assert grid_step(np.full((5, 2), np.nan)) is None
