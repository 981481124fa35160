"""Hidden states in a store: one row per patient, resumed, the same bytes on Ray, read through cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.cohorts.places import corners_um
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.maintenance import verify_store
from equipoise.models.slide_encoders.entries import RandomTransformerParams
from equipoise.models.slide_encoders.hidden_states import HiddenStates
from equipoise.models.slide_encoders.random_transformer import RandomTransformer
from equipoise.models.slide_encoders.state_encoding import encode_states
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.extraction.hidden_states import open_states, store_states
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract, open_store

SMALL = {"width": 16, "depth": 3, "heads": 2}
KEPT = HiddenStates("random_transformer", SMALL)


@pytest.fixture(scope="module")
def extracted(
    slides: pd.DataFrame, params: ExtractionParams, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, pd.DataFrame]:
    """A folder of stores with tiles, and the slides that have some; two of them are of one patient."""
    root = tmp_path_factory.mktemp("tiles")
    index = extract(slides, params, root, workers=0).index
    usable = slides[(index["status"] == "ok").to_numpy()].reset_index(drop=True)
    usable.loc[1, "patient"] = usable.loc[0, "patient"]
    return root, usable


@pytest.fixture
def root(extracted: tuple[Path, pd.DataFrame], tmp_path: Path) -> Path:
    (folder,) = extracted[0].iterdir()
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / folder.name).symlink_to(folder)
    return tmp_path / "features"


@pytest.fixture
def usable(extracted: tuple[Path, pd.DataFrame]) -> pd.DataFrame:
    return extracted[1]


@pytest.fixture
def tiles(root: Path, slides: pd.DataFrame, params: ExtractionParams) -> FeatureStore:
    return open_store(params, root, slides)


def states_folder(root: Path) -> Path:
    (folder,) = [path for path in root.iterdir() if "-states-" in path.name]
    return folder


def test_a_patient_s_slides_are_encoded_together(
    root: Path, usable: pd.DataFrame, tiles: FeatureStore, params: ExtractionParams
) -> None:
    with pytest.raises(DataError, match="run `equipoise extract`"):
        open_states(usable, tiles, KEPT, params, root)
    summary = store_states(usable, tiles, KEPT, params, root, workers=0)
    assert (summary.tried, summary.counts) == (4, {"ok": 4})
    store = open_states(usable, tiles, KEPT, params, root)
    assert store.store.spec.dim == 3 * 16
    assert tiles.spec.address in store.store.spec.reader
    assert verify_store(store.store.path) == []
    encoder = RandomTransformer(RandomTransformerParams(**SMALL))
    for names in (("good-0.svs", "good-1.svs"), ("good-4.svs",)):
        bags, coords = zip(*(tiles.read(name) for name in names), strict=True)
        corners = corners_um(
            np.concatenate(coords), [len(b) for b in bags], [tiles.mpp(name) for name in names], tiles.extent
        )
        assert corners is not None
        wanted, counts = encode_states(encoder, KEPT, np.concatenate(bags), corners, tiles.extent)
        found, found_counts = store.read(names)
        assert not found.flags.writeable  # the mapped file
        np.testing.assert_array_equal(found, wanted)
        assert found_counts.tolist() == counts.tolist()
    assert store_states(usable, tiles, KEPT, params, root, workers=0).tried == 0
    few = replace(KEPT, prototypes=3)
    assert store_states(usable, tiles, few, params, root, workers=0).address != summary.address
    states, counts = open_states(usable, tiles, few, params, root).read(("good-4.svs",))
    assert len(states) == 4
    assert counts[1:].sum() == len(tiles.read("good-4.svs")[0])


def test_interrupted_and_resumed_the_same_bytes(
    root: Path,
    usable: pd.DataFrame,
    tiles: FeatureStore,
    params: ExtractionParams,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    file_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    stem, calls = RandomTransformer.stem, []

    def power_cut(self: RandomTransformer, given):
        calls.append(given.features.shape[1])
        if len([n for n in calls if n > 1]) == 3:
            raise KeyboardInterrupt
        return stem(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(RandomTransformer, "stem", power_cut)
        with pytest.raises(KeyboardInterrupt):
            store_states(usable, tiles, KEPT, params, root, workers=0)
    assert store_states(usable, tiles, KEPT, params, root, workers=0).tried == 2
    other = tmp_path / "other"
    store_states(usable, tiles, KEPT, params, other, workers=0)
    mine, theirs = file_bytes(states_folder(root)), file_bytes(states_folder(other))
    kept = [name for name in theirs if name.startswith(("shards", "index"))]
    assert len(kept) > 2
    assert all(mine[name] == theirs[name] for name in kept)


@pytest.mark.slow
def test_on_ray_the_same_bytes(
    ray_session: None,
    root: Path,
    usable: pd.DataFrame,
    tiles: FeatureStore,
    params: ExtractionParams,
    tmp_path: Path,
    file_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    few, inline = replace(KEPT, prototypes=4), tmp_path / "inline"
    assert store_states(usable, tiles, few, params, root, workers=2).counts == {"ok": 4}
    store_states(usable, tiles, few, params, inline, workers=0)
    mine, theirs = file_bytes(states_folder(root)), file_bytes(states_folder(inline))
    kept = [name for name in theirs if name.startswith(("shards", "index"))]
    assert all(mine[name] == theirs[name] for name in kept)


def test_a_patient_that_cannot_be_encoded_is_named_and_the_others_are_kept(
    root: Path,
    usable: pd.DataFrame,
    tiles: FeatureStore,
    params: ExtractionParams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_stage = RandomTransformer.run_stage

    def fails_on_two_slides(self: RandomTransformer, at: int, state):
        if state.tokens.shape[1] > 1 + max(len(tiles.read(name)[0]) for name in usable["slide"]):
            raise ValueError("tiles lie too far apart")
        return run_stage(self, at, state)

    with monkeypatch.context() as patch:
        patch.setattr(RandomTransformer, "run_stage", fails_on_two_slides)
        with pytest.raises(DataError, match="1 of 4 patients: ValueError: tiles lie too far apart") as caught:
            store_states(usable, tiles, KEPT, params, root, workers=0)
    assert "good-0.svs + good-1.svs" in str(caught.value)
    assert store_states(usable, tiles, KEPT, params, root, workers=0).tried == 1
    with pytest.raises(StudyError, match="3 stages, of which 3 are left for 4 blocks"):
        store_states(usable, tiles, replace(KEPT, blocks=4), params, root, workers=0)


def test_the_store_belongs_to_the_encoder(
    root: Path, usable: pd.DataFrame, tiles: FeatureStore, params: ExtractionParams
) -> None:
    """Another seed, other stages or prototypes: another store."""
    store_states(usable, tiles, KEPT, params, root, workers=0)
    for changes in ({"params": SMALL | {"seed": 1}}, {"blocks": 1}, {"skipped": 1, "blocks": 2}):
        with pytest.raises(DataError, match="not computed yet"):
            open_states(usable, tiles, replace(KEPT, **changes), params, root)
