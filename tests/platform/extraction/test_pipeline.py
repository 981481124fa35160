"""Many slides, in this process: statuses, resume, byte-identity, tolerance."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.slides.reader import SlideReader
from equipoise.platform.extraction.monitoring import ExtractionProgress
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract, open_store
from equipoise.platform.extraction.summary import ExtractionSummary

STATUSES = ["ok", "ok", "no_tissue", "ok", "missing", "ok", "ok", "not_a_slide"]


@pytest.fixture(scope="module")
def undisturbed(
    slides: pd.DataFrame, params: ExtractionParams, tmp_path_factory: pytest.TempPathFactory
) -> ExtractionSummary:
    root = tmp_path_factory.mktemp("undisturbed")
    return extract(slides, params, root, workers=0, qc_dir=root / "qc")


def test_every_slide_has_its_row(slides: pd.DataFrame, undisturbed: ExtractionSummary) -> None:
    index = undisturbed.index
    assert index["slide"].tolist() == slides["slide"].tolist()
    assert index["status"].tolist() == STATUSES
    assert index["patient"].tolist() == slides["patient"].tolist()
    assert (index["error"] != "").tolist() == [status != "ok" for status in STATUSES]
    assert undisturbed.counts == {"ok": 5, "missing": 1, "not_a_slide": 1, "no_tissue": 1}
    assert undisturbed.tiles == index["n"].sum() > 100
    assert (undisturbed.tried, undisturbed.skipped) == (8, 0)
    assert not list(undisturbed.store.rglob("*.tmp"))
    assert not (undisturbed.store / "staging").exists()


def test_a_blank_slide_is_not_a_failure(undisturbed: ExtractionSummary) -> None:
    assert undisturbed.failed == 2
    assert undisturbed.failed_share == 2 / 8
    assert not undisturbed.tolerated
    assert undisturbed.failures_text().splitlines()[0].startswith("  missing.svs: missing: no such file")
    assert undisturbed.failures_text(1).endswith("  and 1 more")


@pytest.mark.parametrize(("max_fail", "tolerated"), [(0.25, True), (0.24, False), (1.0, True)])
def test_tolerance(
    slides: pd.DataFrame,
    params: ExtractionParams,
    undisturbed: ExtractionSummary,
    max_fail: float,
    tolerated: bool,
) -> None:
    again = extract(slides, params.model_copy(update={"max_fail": max_fail}), undisturbed.store, workers=0)
    assert again.tolerated is tolerated


def test_what_is_done_is_not_opened_again(
    slides: pd.DataFrame,
    params: ExtractionParams,
    undisturbed: ExtractionSummary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SlideReader, "__init__", None)
    again = extract(slides, params, undisturbed.store.parent, workers=0)
    assert (again.tried, again.skipped) == (0, 8)
    assert again.store == undisturbed.store
    pd.testing.assert_frame_equal(again.index, undisturbed.index)


def test_no_session_is_opened_without_work(
    slides: pd.DataFrame, params: ExtractionParams, undisturbed: ExtractionSummary
) -> None:
    def session() -> None:
        raise AssertionError("nothing to do, so no Ray")

    assert extract(slides, params, undisturbed.store, workers=2, session=session).tried == 0


def test_pictures_are_named_by_slide(undisturbed: ExtractionSummary) -> None:
    names = {path.name for path in (undisturbed.store.parent / "qc").iterdir()}
    good = {f"good-{at}.svs{end}" for at in range(5) for end in (".jpg", ".geojson")}
    assert names == good | {"blank.svs.jpg", "blank.svs.geojson"}


@pytest.mark.parametrize("after", [1, 3, 6])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    slides: pd.DataFrame,
    params: ExtractionParams,
    undisturbed: ExtractionSummary,
    file_bytes: Callable,
    tmp_path: Path,
    after: int,
) -> None:
    def stop(moment: ExtractionProgress) -> None:
        if moment.done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(slides, params, tmp_path, workers=0, progress=stop)
    resumed = extract(slides, params, tmp_path, workers=0)
    assert resumed.tried == 8 - after
    assert file_bytes(resumed.store) == file_bytes(undisturbed.store)


def test_a_killed_run_goes_on_to_the_same_bytes(
    slides: pd.DataFrame,
    params: ExtractionParams,
    undisturbed: ExtractionSummary,
    file_bytes: Callable,
    tmp_path: Path,
) -> None:
    """SIGKILL while slides are staged, nothing recorded and one slide half done; then twice more in that slide."""
    slides.to_parquet(tmp_path / "slides.parquet")
    (tmp_path / "params.json").write_text(params.model_dump_json())
    code = """
        import os, signal, sys, pandas as pd
        from equipoise.models.encoders.handcrafted import Handcrafted
        from equipoise.platform.extraction import pipeline
        from equipoise.platform.extraction.params import ExtractionParams

        class Mortal(Handcrafted):
            left = int(sys.argv[2])
            def __call__(self, tiles):
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(tiles)

        root = sys.argv[1]
        params = ExtractionParams.model_validate_json(open(root + "/params.json").read())
        pipeline.extract(pd.read_parquet(root + "/slides.parquet"), params, root + "/store", workers=0,
                         make_encoder=lambda p: Mortal())
    """
    for batches in ("4", "1", "1"):
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), batches]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (store,) = (tmp_path / "store").iterdir()
    assert not (store / "index.parquet").exists()
    assert len(list((store / "staging").glob("*.arrow"))) >= 1
    assert len(list((store / "staging" / "attempts").iterdir())) == 1
    resumed = extract(slides, params, tmp_path / "store", workers=0)
    assert resumed.tried < 8
    assert file_bytes(store) == file_bytes(undisturbed.store)


def test_a_rerun_with_retry_tries_what_failed(
    table_of: Callable,
    make_slide: Callable[..., Path],
    params: ExtractionParams,
    tmp_path: Path,
    file_bytes: Callable,
) -> None:
    late = tmp_path / "late.svs"
    slides = table_of([make_slide("first", seed=1), late])
    late.write_text("being copied")
    os.utime(late, (1, 1))
    assert extract(slides, params, tmp_path / "a", workers=0).counts == {"ok": 1, "not_a_slide": 1}
    tissue = make_slide("other", seed=2).read_bytes()
    late.write_bytes(tissue)  # other content: another key, no retry needed
    assert extract(slides, params, tmp_path / "a", workers=0).counts == {"ok": 2}
    strict = params.model_copy(update={"min_tiles": 10_000})
    assert extract(slides, strict, tmp_path / "b", workers=0).counts == {"too_few_tiles": 2}
    assert extract(slides, strict, tmp_path / "b", workers=0).tried == 0
    assert extract(slides, strict.model_copy(update={"retry": True}), tmp_path / "b", workers=0).tried == 2


def test_a_pixel_size_can_be_corrected_in_the_table_or_the_study(
    table_of: Callable, make_slide: Callable[..., Path], params: ExtractionParams, tmp_path: Path
) -> None:
    slides = table_of([make_slide("wrong", seed=1, mpp=0.00499), make_slide("right", seed=2)])
    first = extract(slides, params, tmp_path, workers=0)
    assert first.index["status"].tolist() == ["mpp_out_of_range", "ok"]
    assert "0.00499" in first.index["error"][0]
    corrected = extract(slides.assign(mpp=[0.25, np.nan]), params, tmp_path, workers=0)
    assert corrected.tried == 1
    assert corrected.index["status"].tolist() == ["ok", "ok"]
    assert corrected.index["mpp_source"].tolist() == ["table", "metadata"]
    assert corrected.index["level0_px"].tolist() == [128.0, 64.0]
    override = params.model_copy(update={"mpp_override": 0.5})
    overridden = extract(slides.assign(mpp=[0.25, np.nan]), override, tmp_path, workers=0)
    assert overridden.index["mpp_source"].tolist() == ["table", "study"]


def test_open_store_means_the_study_s_slides(
    slides: pd.DataFrame, params: ExtractionParams, undisturbed: ExtractionSummary, tmp_path: Path
) -> None:
    part = slides.iloc[[3, 0]].reset_index(drop=True)
    store = open_store(params, undisturbed.store.parent, part)
    assert store.index()["slide"].tolist() == part["slide"].tolist()
    features, coords = store.read(part["slide"][0])
    assert features.shape == (store.status(part["slide"][0])["n"], 90)
    assert len(coords) == len(features)
    with pytest.raises(DataError, match="not extracted yet"):
        open_store(params, tmp_path)
    with pytest.raises(DataError, match=r"mpp: 0\.5 here, 1\.0 asked for"):
        open_store(params.model_copy(update={"mpp": 1.0}), undisturbed.store)


def test_progress_speaks_of_speed_and_time_left(
    slides: pd.DataFrame, params: ExtractionParams, tmp_path: Path
) -> None:
    moments: list[ExtractionProgress] = []
    summary = extract(slides, params, tmp_path, workers=0, progress=moments.append)
    assert [moment.done for moment in moments] == list(range(1, 9))
    assert (moments[-1].tiles, moments[-1].failed, moments[-1].left_s) == (summary.tiles, 2, 0.0)
    sizes = [Path(path).stat().st_size if Path(path).exists() else 0 for path in slides["path"]]
    assert moments[0].slide == slides["slide"][int(np.argmax(sizes))]  # largest first
    line = str(ExtractionProgress(2, 8, 500, 1, 4.0, "a.svs", "ok"))
    assert line == "failed=1 tiles=500 tiles_per_s=125 last=a.svs status=ok"


def test_a_table_without_its_columns_is_refused(params: ExtractionParams, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks path, mpp"):
        extract(pd.DataFrame({"slide": ["a"]}), params, tmp_path, workers=0)
