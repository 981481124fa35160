import contextlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import open_slide
from equipoise.datasets.slides.tiff_directory import Directory, read_directories, sample_problem
from equipoise.datasets.synthetic.tiff import SHORT, Tag, TiffWriter, TiledImage, picture_tags, tile_tags


def parsed(path: Path) -> list[Directory]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [
            Directory(
                d.fd,
                d.order,
                d.size,
                {tag: entry for tag, entry in d.entries.items() if len(d.values(tag)) >= 0},
            )
            for d in read_directories(fd)
        ]
    finally:
        os.close(fd)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_both_byte_orders_and_both_sizes(tmp_path: Path, order: str, big: bool) -> None:
    mark = b"II" if order == "<" else b"MM"
    word, count, link = ("Q", "Q", 16) if big else ("I", "H", 8)
    offsets = np.array([11, 22, 33], f"{order}u4")
    head = (
        struct.pack(f"{order}2sHHHQ", mark, 43, 8, 0, link)
        if big
        else struct.pack(f"{order}2sHI", mark, 42, link)
    )
    inline = struct.calcsize(word)
    entries = [
        (256, 3, 1, struct.pack(f"{order}H", 620)),
        (324, 4, 3, b""),
        (
            282,
            5,
            1,
            struct.pack(f"{order}II", 7, 2) if big else b"",
        ),  # eight bytes stand in a BigTIFF's entry
        (999, 99, 1, b""),
    ]
    after = link + struct.calcsize(f"{order}{count}") + len(entries) * (4 + 2 * inline) + inline
    body = struct.pack(f"{order}{count}", len(entries))
    for tag, kind, number, value in entries:
        where = struct.pack(f"{order}{word}", after if tag == 324 else after + 12)
        body += struct.pack(f"{order}HH{word}", tag, kind, number) + (
            value.ljust(inline, b"\0") if value else where
        )
    body += struct.pack(f"{order}{word}", 0)
    path = tmp_path / "a.tiff"
    path.write_bytes(head.ljust(link, b"\0") + body + offsets.tobytes() + struct.pack(f"{order}II", 7, 2))
    fd = os.open(path, os.O_RDONLY)
    (directory,) = read_directories(fd)
    assert directory.number(256, 0) == 620
    assert directory.values(324).tolist() == [11, 22, 33]
    assert directory.values(282).tolist() == [7, 2]
    assert directory.number(257, 5) == 5
    assert 324 in directory
    assert 999 not in directory  # of no known type
    os.close(fd)


@pytest.mark.real
def test_a_real_slide(shared_data: Path) -> None:
    fd = os.open(shared_data / "slides" / "CMU-1-Small-Region.svs", os.O_RDONLY)
    first = read_directories(fd)[0]
    assert [first.number(tag, 0) for tag in (256, 257, 259, 262, 322)] == [2220, 2967, 7, 2, 240]
    assert len(first.data(347)) == 289
    assert len(first.values(324)) == 130
    os.close(fd)


def test_a_chain_without_end_and_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "loop.tiff"
    path.write_bytes(struct.pack("<2sHIHI", b"II", 42, 8, 0, 8) + bytes(8))
    with pytest.raises(ValueError, match="no end"):
        parsed(path)
    for content in (b"", b"II", b"PK" + bytes(30), struct.pack("<2sHI", b"II", 44, 8) + bytes(8)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a TIFF"):
            parsed(path)


@given(
    at=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 10**6),
)
def test_damage_is_an_error_and_nothing_else(damaged: "Damage", at: list[tuple[int, int]], cut: int) -> None:
    damaged(at, cut)


class Damage:
    """Writes a damaged copy of a file and reads its directories."""

    def __init__(self, content: bytes, path: Path) -> None:
        self.content, self.path = content, path

    def __call__(self, at: list[tuple[int, int]], cut: int) -> None:
        content = bytearray(self.content)
        tail = len(content) - 400  # where the directories are
        for position, value in at:
            content[tail + position % 400 if position % 2 else position % 16] = value
        self.path.write_bytes(content if cut % 3 else content[: cut % len(content)])
        with contextlib.suppress(ValueError):
            parsed(self.path)


@pytest.fixture(scope="module")
def damaged(write_jpeg_slide, picture, tmp_path_factory: pytest.TempPathFactory) -> Damage:
    content = write_jpeg_slide([picture[:128, :128], picture[:64, :64]]).read_bytes()
    return Damage(content, tmp_path_factory.mktemp("damaged") / "a.svs")


@pytest.mark.parametrize(
    ("pixels", "bits", "says"),
    [
        (np.zeros((64, 64), np.uint16), 16, "grey levels of 16 bits"),
        (np.zeros((64, 64, 3), np.uint16), 16, "3 samples of 16 bits"),
        (np.zeros((64, 64, 5), np.uint8), 8, "5 samples of 8 bits"),
        (np.zeros((64, 64, 3), np.uint8), 8, ""),
        (np.zeros((64, 64), np.uint8), 8, ""),
    ],
)
def test_pixels_that_would_be_shown_wrong(tmp_path: Path, pixels: np.ndarray, bits: int, says: str) -> None:
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    with (tmp_path / "a.svs").open("wb") as file:
        writer, image = TiffWriter(file), TiledImage(64, 64, 64)
        writer.tile(image, pixels.tobytes())
        tags = {tag.code: tag for tag in picture_tags(64, 64, subfile=0, description="Aperio test|MPP = 0.5")}
        tags |= {tag.code: tag for tag in tile_tags(writer, image)}
        tags |= {258: Tag(258, SHORT, [bits] * samples), 277: Tag(277, SHORT, [samples])}
        tags |= {259: Tag(259, SHORT, [1]), 262: Tag(262, SHORT, [2 if samples == 3 else 1])}
        writer.directory([tags[code] for code in sorted(tags) if code != 530])
    assert says in sample_problem(tmp_path / "a.svs")
    assert bool(sample_problem(tmp_path / "a.svs")) == bool(says)
    if says:
        with pytest.raises(SlideProblem, match=says) as caught:
            open_slide(tmp_path / "a.svs")
        assert caught.value.status == "unreadable"
    assert sample_problem(tmp_path / "none") == ""
