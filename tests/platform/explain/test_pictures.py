"""Pictures of a run are drawn once, again where something changed, and go with their maps."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.platform.explain.conftest import FAILED, made_map

from equipoise.platform.explain import pictures
from equipoise.platform.explain.pictures import SlideFile, draw_pictures
from equipoise.platform.explain.tile_scores import TileScores, scores_path, write_tile_scores


def write(folder: Path, scores: TileScores) -> Path:
    return write_tile_scores(
        scores, scores_path(folder, scores.slide, scores.task, scores.class_name, scores.method)
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Slides that are drawn, in their order."""
    slides: list[str] = []
    render = pictures.render

    def counted(maps: list[TileScores], *arguments: object, **named: object) -> object:
        slides.append(maps[0].slide)
        return render(maps, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "render", counted)
    return slides


def test_only_what_changed_is_drawn_again(
    white_slide: Callable[..., Path], tmp_path: Path, drawn: list[str]
) -> None:
    first, second = made_map(slide="A"), made_map(slide="B")
    survival = {"task": "OS", "kind": "survival", "class_name": ""}
    gone = write(tmp_path, made_map(slide="A", **survival))
    write(tmp_path, first)
    write(tmp_path, second)
    slides = {"A": SlideFile(str(white_slide(700, 500)))}
    missing = {"B": "the slide was not given"}
    assert draw_pictures(tmp_path, slides) == missing
    assert drawn == ["A", "B"]
    assert (tmp_path / "A" / "OS.integrated_gradients.png").is_file()
    assert draw_pictures(tmp_path, slides) == missing  # said again, drawn not again
    assert drawn == ["A", "B"]

    write(tmp_path, made_map(slide="B", checks=(FAILED,)))
    draw_pictures(tmp_path, slides)
    assert drawn == ["A", "B", "B"]

    (tmp_path / "A" / "viewer.html").unlink()
    draw_pictures(tmp_path, slides)
    assert drawn == ["A", "B", "B", "A"]

    gone.unlink()
    draw_pictures(tmp_path, slides)
    assert drawn == ["A", "B", "B", "A", "A"]
    assert sorted(path.name for path in (tmp_path / "A").iterdir()) == [
        "MSI.MSIH.integrated_gradients.geojson",
        "MSI.MSIH.integrated_gradients.jpg",
        "MSI.MSIH.integrated_gradients.parquet",
        "MSI.MSIH.integrated_gradients.png",
        "drawn_from.json",
        "viewer.html",
        "viewer_files",
    ]


def test_the_pixel_size_of_the_table_counts(write_slide: Callable[..., Path], tmp_path: Path) -> None:
    """A slide that does not state its pixel size is drawn where the table or the study does."""
    import numpy as np

    slide = write_slide([np.full((500, 700, 3), 255, np.uint8)], mpp=None)
    write(tmp_path, made_map(slide="A"))
    assert "A" in draw_pictures(tmp_path, {"A": SlideFile(str(slide))})
    assert draw_pictures(tmp_path, {"A": SlideFile(str(slide), mpp=0.5)}) == {}
    assert draw_pictures(tmp_path, {"A": SlideFile(str(slide), study_mpp=0.5)}) == {}
