"""Pictures of a slide's maps: what is written upon them, what is refused, what happens without a slide."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.platform.explain.conftest import FAILED, PASSED, made_map

from equipoise.datasets.errors import DataError
from equipoise.platform.explain import heatmap as drawing
from equipoise.platform.explain.captions import checks_line, drawable
from equipoise.platform.explain.heatmap import round_length, write_heatmap
from equipoise.platform.explain.render import render
from equipoise.platform.explain.slide_picture import blank_paper, ends, slide_picture

RED = (166, 29, 36)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that a heat-map draws."""
    texts: list[str] = []
    wrapped = drawing._wrapped

    def kept(text: str, size: int, width: int) -> list[str]:
        texts.append(text)
        return wrapped(text, size, width)

    monkeypatch.setattr(drawing, "_wrapped", kept)
    return texts


def test_the_picture_says_what_it_shows(
    white_slide: Callable[..., Path], tmp_path: Path, written: list[str]
) -> None:
    scores = made_map()
    write_heatmap(scores, slide_picture(white_slide(700, 500), [scores], 10**6), tmp_path / "m.png")
    said = " ".join(written)
    at = int(scores.score.argmax())
    tile = f"({scores.x[at]}, {scores.y[at]})"
    names = ("MSI: MSIH", "slide CRC/A-3", "cohort CRC", "integrated gradients", "change of the logit")
    for part in (*names, "towards MSIH", "away from MSIH", tile, "SYNTHETIC", "Research use only", "passed"):
        assert part in said, part
    assert "FAILED" not in said


def test_a_failed_check_is_printed_on_the_picture(tmp_path: Path, written: list[str]) -> None:
    good, bad = made_map(), made_map(checks=(PASSED, FAILED))
    paper = blank_paper([good], "the slide is away")
    fine = write_heatmap(good, paper, tmp_path / "good.png")
    written.clear()
    failed = write_heatmap(bad, paper, tmp_path / "bad.png")
    said = " ".join(written)
    assert "FAILED CHECK: model randomisation" in said
    assert FAILED.reason in said
    assert "Blank paper: the slide is away" in said

    def red(path: Path) -> int:
        return int((np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3) == RED).all(axis=1).sum())

    width = failed.width
    assert red(failed.path) - red(fine.path) > 10 * width  # a band over the whole width
    with Image.open(failed.path.with_suffix(".jpg")) as small:
        top = np.asarray(small)[2:6].astype(int)
    assert np.abs(top - RED).mean() < 12  # also in the small picture


def test_synthetic_maps_are_marked(tmp_path: Path) -> None:
    scores = made_map(score=np.zeros(len(made_map())))
    paper = blank_paper([scores], "none")
    plain = made_map(score=scores.score, synthetic=False)
    marked = np.asarray(Image.open(write_heatmap(scores, paper, tmp_path / "a.png").path)).astype(int)
    clean = np.asarray(Image.open(write_heatmap(plain, paper, tmp_path / "b.png").path)).astype(int)
    redder = (marked[:400, :, 0] - marked[:400, :, 1]) - (clean[:400, :, 0] - clean[:400, :, 1])
    assert (redder > 15).sum() > 500


def test_the_scale_bar_is_as_long_as_it_says(white_slide: Callable[..., Path], tmp_path: Path) -> None:
    """700 px at 0.5 um/px are 0.35 mm: a bar of 50 um (less than a quarter of the width) is 100 px long."""
    scores = made_map(synthetic=False)
    drawn = write_heatmap(scores, slide_picture(white_slide(700, 500), [scores], 10**6), tmp_path / "m.png")
    pixels = np.asarray(Image.open(drawn.path).convert("RGB")).astype(int)
    row = pixels[drawn.top + drawn.height - 15, drawn.left : drawn.left + drawn.width]
    dark = np.flatnonzero((row < 30).all(axis=1))
    assert (dark[0], dark[-1] - dark[0] + 1) == (14, 100)


@pytest.mark.parametrize(("most", "length"), [(7.3, 5), (1, 1), (0.34, 0.2), (0.0019, 0.001), (20, 20)])
def test_round_lengths(most: float, length: float) -> None:
    assert round_length(most) == length


def test_letters_that_the_font_lacks() -> None:
    assert drawable("Größe ≥ 5 µm – naïve 胃") == "Gro?e >= 5 um - naive ?"
    assert checks_line(made_map(checks=())) == "This map has not been checked."
    assert (
        checks_line(made_map(checks=(PASSED, FAILED)))
        == "This map failed 1 of 2 checks (model randomisation)."
    )


def test_no_tile_is_at_both_ends() -> None:
    scores = made_map(x=[0, 1, 2, 3], y=[0, 0, 0, 0], score=[3.0, 1.0, 4.0, 2.0])
    assert ends(scores, 1) == ([2], [1])
    assert ends(scores, 3) == ends(scores, 9) == ([2, 0], [1, 3])


def test_a_slide_that_cannot_be_read_gives_blank_paper(tmp_path: Path) -> None:
    drawn = render(made_map(), tmp_path / "absent.svs", tmp_path / "out")
    assert drawn.missing == "no such file"
    assert drawn.viewer is None
    assert [path.name for path in drawn.heatmaps] == ["MSI.MSIH.integrated_gradients.png"]


def test_tiles_of_another_slide_are_not_drawn_on_this_one(
    white_slide: Callable[..., Path], tmp_path: Path
) -> None:
    drawn = render(made_map(corner=(5000, 0)), white_slide(700, 500), tmp_path)
    assert "the slide has 700 x 500 level-0 pixels" in drawn.missing


def test_a_viewer_of_an_earlier_run_goes_with_its_slide(
    white_slide: Callable[..., Path], tmp_path: Path
) -> None:
    drawn = render(made_map(), white_slide(700, 500), tmp_path)
    assert drawn.viewer is not None
    assert (tmp_path / "viewer_files" / "slide").is_dir()
    render(made_map(), None, tmp_path)
    assert not drawn.viewer.exists()
    assert not (tmp_path / "viewer_files").exists()


def test_maps_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="maps of 2 slides"):
        render([made_map(), made_map(slide="B")], None, tmp_path)
    with pytest.raises(DataError, match="two maps of the same task"):
        render([made_map(), made_map()], None, tmp_path)
    with pytest.raises(DataError, match="maps of 0 slides"):
        render([], None, tmp_path)


def test_the_viewer_is_self_contained_and_hostile_names_are_text(
    white_slide: Callable[..., Path], tmp_path: Path
) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    survival = {"task": "OS", "kind": "survival", "class_name": "", "checks": (FAILED,)}
    maps = [made_map(slide=hostile), made_map(slide=hostile, **survival)]
    drawn = render(maps, white_slide(700, 500), tmp_path / "a b")
    assert drawn.viewer is not None
    page = drawn.viewer.read_text()
    assert hostile not in page
    assert "<img src=x" not in page
    assert "default-src 'none'" in page
    elements = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    assert re.findall(r'(?:src|href)="[^"]*"', elements) == []
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert data["slide"] == hostile
    assert [shown["failed"] for shown in data["maps"]] == [False, True]
    for shown in data["maps"]:
        for tile in (*shown["top"], *shown["bottom"]):
            assert (tmp_path / "a b" / tile["crop"]).is_file()


def test_openseadragon_is_the_file_that_its_licence_names(root: Path) -> None:
    assets = root / "platform" / "explain" / "assets"
    licence = (assets / "openseadragon.LICENSE.txt").read_text()
    assert hashlib.sha256((assets / "openseadragon.min.js").read_bytes()).hexdigest() in licence
    assert "Redistribution and use in source and binary forms" in licence


def test_the_example_of_the_page_runs_as_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "docs" / "explain.md").read_text()
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "render(" in code)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/explain.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "the slide was not given ['MSI.MSI-H.my_method.png']"
