"""Slide encoders: one row per slide in a second store, tiles read and not encoded again, resume, what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from torch import Tensor

from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.maintenance import verify_store
from equipoise.models.slide_encoders.card import Pairing
from equipoise.models.slide_encoders.entries import MeanStdParams, RandomTransformerParams
from equipoise.models.slide_encoders.mean_std import MeanStd
from equipoise.models.slide_encoders.protocol import SlideTiles, SlideTokens, encode_slide
from equipoise.models.slide_encoders.random_transformer import RandomTransformer
from equipoise.platform.errors import StudyError
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract
from equipoise.platform.extraction.sources import obtain_features, open_features


@pytest.fixture(scope="module")
def tiles(slides: pd.DataFrame, params: ExtractionParams, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of stores with the tiles of all slides."""
    root = tmp_path_factory.mktemp("tiles")
    extract(slides, params, root, workers=0)
    return root


@pytest.fixture
def root(tiles: Path, tmp_path: Path) -> Path:
    """A folder of stores that has the tiles and nothing else."""
    (folder,) = tiles.iterdir()
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / folder.name).symlink_to(folder)
    return tmp_path / "features"


@pytest.fixture
def wish(params: ExtractionParams) -> ExtractionParams:
    return params.model_copy(update={"slide_encoder": "mean_std"})


def vectors_of(root: Path) -> FeatureStore:
    (folder,) = [path for path in root.iterdir() if "mean_std" in path.name]
    return FeatureStore.open(folder)


def test_one_row_per_slide(
    slides: pd.DataFrame, params: ExtractionParams, wish: ExtractionParams, root: Path
) -> None:
    tiles = open_features(params, root, root, slides)
    written = {file: file.stat().st_mtime_ns for file in tiles.path.rglob("*.arrow")}
    summary = obtain_features(slides, wish, root, root, workers=0)
    assert summary.counts == {"ok": 5, "missing": 1, "not_a_slide": 1, "no_tissue": 1}
    assert (summary.tiles, summary.tried) == (5, 5)
    store = open_features(wish, root, root, slides)
    assert store.spec.address == summary.address
    assert tiles.spec.address in store.spec.reader
    assert (store.spec.encoder, store.spec.dim) == ("handcrafted-mean_std", 450)
    assert verify_store(store.path) == []
    encoder = MeanStd(MeanStdParams())
    for row in summary.index[summary.index["status"] == "ok"].itertuples():
        bag, corners = tiles.read(row.slide)
        vector, origin = store.read(row.slide)
        extent = params.mpp * params.tile_px
        wanted = encode_slide(encoder, bag, corners.astype(np.float32), extent)
        np.testing.assert_array_equal(vector, wanted[None])
        assert origin.tolist() == [[0, 0]]
    errors = summary.index.set_index("slide")["error"]
    assert errors["missing.svs"].startswith("no such file")
    assert written == {file: file.stat().st_mtime_ns for file in tiles.path.rglob("*.arrow")}
    again = obtain_features(slides, wish, root, root, workers=0)
    assert (again.tried, again.counts) == (0, summary.counts)
    other = wish.model_copy(update={"slide_encoder_params": {"quantiles": []}})
    assert obtain_features(slides, other, root, root, workers=0).address != summary.address


def test_on_ray_and_interrupted_the_same_bytes(
    ray_session: None, slides: pd.DataFrame, wish: ExtractionParams, root: Path, tmp_path: Path
) -> None:
    @contextmanager
    def power_cut() -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        obtain_features(slides, wish, root, root, workers=2, session=power_cut)
    opened = []

    @contextmanager
    def session() -> Iterator[None]:
        opened.append(1)
        yield

    summary = obtain_features(slides, wish, root, root, workers=2, session=session)
    assert summary.counts["ok"] == 5
    assert opened == [1]  # not for the tiles: they are there
    (tmp_path / "inline").mkdir()
    for folder in root.iterdir():
        if folder.is_symlink():
            (tmp_path / "inline" / folder.name).symlink_to(folder.resolve())
    obtain_features(slides, wish, tmp_path / "inline", root, workers=0)
    mine, theirs = vectors_of(root), vectors_of(tmp_path / "inline")
    for name in ("index.parquet", *(f"shards/{file.name}" for file in (theirs.path / "shards").iterdir())):
        assert (mine.path / name).read_bytes() == (theirs.path / name).read_bytes()


def test_slides_that_get_tiles_later(
    slides: pd.DataFrame, wish: ExtractionParams, root: Path, tmp_path: Path
) -> None:
    table = slides.iloc[:2].assign(path=[slides["path"][0], str(tmp_path / "late.svs")])
    stores = tmp_path / "stores"
    first = obtain_features(table, wish, stores, root, workers=0)
    assert first.counts == {"ok": 1, "missing": 1}
    (tmp_path / "late.svs").write_bytes(Path(slides["path"][1]).read_bytes())
    second = obtain_features(table, wish, stores, root, workers=0)
    assert (second.counts, second.tried) == ({"ok": 2}, 1)


def test_a_bag_that_cannot_be_encoded_is_a_row(
    slides: pd.DataFrame, wish: ExtractionParams, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: MeanStd, state: SlideTokens) -> Tensor:
        raise MemoryError("too many tiles")

    with monkeypatch.context() as patch:
        patch.setattr(MeanStd, "readout", fail)
        broken = obtain_features(slides.iloc[:1], wish, root, root, workers=0)
    assert broken.index["status"].tolist() == ["error"]
    assert broken.index["error"][0].startswith("MemoryError: too many tiles (test_slide_vectors.py")
    assert obtain_features(slides.iloc[:1], wish, root, root, workers=0).tried == 0
    retry = wish.model_copy(update={"retry": True})
    assert obtain_features(slides.iloc[:1], retry, root, root, workers=0).counts == {"ok": 1}


def test_corners_and_side_of_a_tile_are_in_um(
    slides: pd.DataFrame,
    params: ExtractionParams,
    wish: ExtractionParams,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store has corners in pixels of the slide; where a slide has 0.25 um/px, its tiles of 56 um are 224 px."""
    seen: list[SlideTiles] = []
    stem = MeanStd.stem

    def look(self: MeanStd, tiles: SlideTiles) -> SlideTokens:
        seen.append(tiles)
        return stem(self, tiles)

    monkeypatch.setattr(MeanStd, "stem", look)
    obtain_features(slides.iloc[:1], wish, root, root, workers=0)
    tiles = open_features(params, root, root, slides.iloc[:1])
    (index,) = tiles.index().query("status == 'ok'").itertuples()
    (given,) = seen
    assert given.extent.tolist() == [pytest.approx(params.mpp * params.tile_px)]
    _, corners = tiles.read(index.slide)
    np.testing.assert_allclose(given.corners[0].numpy(), corners * index.mpp, rtol=1e-6)
    steps = np.diff(np.unique(given.corners[0, :, 0].numpy()))
    assert len(steps) > 0
    in_tiles = steps / given.extent.item()
    np.testing.assert_allclose(in_tiles, in_tiles.round(), atol=0.02)  # tiles lie side by side


def test_an_encoder_with_stages(slides: pd.DataFrame, params: ExtractionParams, root: Path) -> None:
    small = {"width": 32, "depth": 2}
    wish = params.model_copy(update={"slide_encoder": "random_transformer", "slide_encoder_params": small})
    assert obtain_features(slides, wish, root, root, workers=0).counts["ok"] == 5
    store, tiles = open_features(wish, root, root, slides), open_features(params, root, root, slides)
    assert (store.spec.encoder, store.spec.dim) == ("handcrafted-random_transformer", 64)
    encoder = RandomTransformer(RandomTransformerParams(**small))
    (bag, corners), row = tiles.read("good-0.svs"), tiles.index().set_index("slide").loc["good-0.svs"]
    um = (corners * row["mpp"]).astype(np.float32)
    wanted = encode_slide(encoder, bag, um, params.mpp * params.tile_px)
    np.testing.assert_array_equal(store.read("good-0.svs")[0], wanted[None])


def test_where_the_study_names_one_store(slides: pd.DataFrame, wish: ExtractionParams, root: Path) -> None:
    (folder,) = root.iterdir()
    summary = obtain_features(slides.iloc[:1], wish, folder, root, workers=0)
    assert summary.store.parent == root
    assert len(open_features(wish, folder, root, slides.iloc[:1]).read("good-0.svs")[0]) == 1


def test_what_the_study_may_say(slides: pd.DataFrame, wish: ExtractionParams, root: Path) -> None:
    for given, says in (
        ({"slide_encoder": "meanstd"}, "Did you mean 'mean_std'"),
        (
            {"slide_encoder": "mean_std", "slide_encoder_params": {"quantiles": [2]}},
            "slide_encoder_params.quantiles",
        ),
        ({"slide_encoder_params": {"quantiles": [0.5]}}, "needs slide_encoder"),
    ):
        with pytest.raises(ValidationError, match=says):
            ExtractionParams.model_validate(given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MeanStdParams, "pairings", (Pairing("uni"),))
        with pytest.raises(StudyError, match="made for features of uni, not of handcrafted"):
            obtain_features(slides.iloc[:1], wish, root, root, workers=0)
        with pytest.raises(ValidationError, match="made for features of uni"):
            ExtractionParams(slide_encoder="mean_std")
