"""Hidden states of a model's frozen slide encoder: computed once for every patient, and read in every epoch.

The pipeline of slide encoders again, over the tiles of all slides of a patient together, into a store of its own, which
is addressed by the store of tiles, the encoder and the states that are kept. A run that was interrupted continues.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.cohorts.places import corners_um
from equipoise.datasets.errors import DataError
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.spec import StoreSpec
from equipoise.datasets.store.staging import Staging
from equipoise.datasets.store.state_store import StateStore, table_of_cases
from equipoise.models.slide_encoders.hidden_states import HiddenStates
from equipoise.platform.errors import StudyError
from equipoise.platform.extraction.chunks import Row
from equipoise.platform.extraction.encoders import load_encoder
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import run_stages
from equipoise.platform.extraction.slide_vectors import (
    EncodedSlide,
    SlideEncodingStage,
    SlideStageFactory,
    check_stored_tiles,
    make_slide_encoder,
    spec_behind,
    stores_folder,
)
from equipoise.platform.extraction.summary import ExtractionSummary, summarise

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.models.slide_encoders.protocol import SlideEncoder

#: Raise with every change of the numbers: it enters the address of every store.
_VERSION = 1


def store_states(
    slides: pd.DataFrame,
    tiles: FeatureStore,
    kept: HiddenStates,
    params: ExtractionParams,
    store_root: str | Path,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    session: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> ExtractionSummary:
    """Compute the hidden states of all patients that are not in the store yet.

    Parameters
    ----------
    slides
        Slides that have tiles: columns slide and patient, in the order in which cases hold them.
    tiles
        The study's store of tiles, opened under the names of the slides table.
    kept
        Which states (:attr:`~equipoise.models.entries.ModelParams.hidden_states`).
    params, store_root, workers, gpus_per_worker, session
        As for :func:`~equipoise.platform.extraction.pipeline.extract`.

    Raises
    ------
    DataError
        If states of a patient cannot be computed; those of the others are kept.
    """
    started = time.perf_counter()
    index = tiles.index().set_index("slide", drop=False)
    table = table_of_cases(slides_of_patients(slides), index)
    spec = states_spec(kept, params, tiles.spec)
    with FeatureStore.create_or_open(stores_folder(store_root), spec, params.shard_slides) as store:
        keys = store.register(table)
        store.staging.retract_unfinished_attempts()
        for key in keys:
            if store.status(key)["status"] == "error":  # what was wrong may have been put right
                store.reset(key)
        store.recover_staged(store.pending(keys))
        todo = set(store.pending(keys))
        rows = [
            {"key": key, "slide": name, "tiles": json.dumps(parts)}
            for key, name, parts in zip(keys, table["slide"], table["keys"], strict=True)
            if key in todo
        ]
        stages = StateStageFactory(
            params,
            store.staging,
            None,
            load_encoder,
            1,
            tiles.folder.address,
            kept=kept,
            gpus_per_worker=gpus_per_worker,
        )
        run_stages(rows, store, stages, workers, session)
        summary = summarise(
            table.drop(columns=["fingerprint", "keys"]),
            keys,
            store,
            params,
            len(todo),
            time.perf_counter() - started,
        )
    failed = summary.index[summary.index["status"] != "ok"]
    if len(failed):
        first = failed.iloc[0]
        raise DataError(
            f"the slide encoder gave no hidden states for {len(failed)} of {len(table)} patients: {first['error']}",
            where=f"slides {first['slide']}",
            fix="exclude these patients, or write model: {cache: false}; the states of the others are kept",
        )
    return summary


def open_states(
    slides: pd.DataFrame,
    tiles: FeatureStore,
    kept: HiddenStates,
    params: ExtractionParams,
    store_root: str | Path,
) -> StateStore:
    """Open the store that :func:`store_states` filled.

    Raises
    ------
    DataError
        If there is no such store, or tiles have changed since.
    """
    spec, root = states_spec(kept, params, tiles.spec), stores_folder(store_root)
    if not FeatureStore.exists(root, spec):
        raise DataError(
            "hidden states of the slide encoder were not computed yet",
            where=f"{root}/{spec.folder}",
            fix="run `equipoise extract`",
        )
    store = FeatureStore.create_or_open(root, spec, params.shard_slides)
    store.choose(table_of_cases(slides_of_patients(slides), tiles.index().set_index("slide", drop=False)))
    return StateStore(store)


def slides_of_patients(slides: pd.DataFrame) -> list[tuple[str, ...]]:
    """Slides of each patient that has some, in the order of the table."""
    of_patients: dict[str, list[str]] = {}
    for slide, patient in zip(slides["slide"], slides["patient"], strict=True):
        of_patients.setdefault(patient, []).append(str(slide))
    return [tuple(names) for names in of_patients.values()]


def states_spec(kept: HiddenStates, params: ExtractionParams, tiles: StoreSpec) -> StoreSpec:
    """The specification of the states of a slide encoder over a store of tiles.

    Raises
    ------
    StudyError
        If the encoder was made for other tile features, or has too few stages.
    """
    from equipoise.models.slide_encoders.protocol import token_width

    encoder = make_slide_encoder(kept.encoder, kept.params)
    try:
        check_stored_tiles(kept.encoder, params, tiles)
        encoder.dim(tiles.dim)
        width = token_width(encoder, tiles.dim)[0] * len(kept.stages(encoder.stages))
    except ValueError as error:
        raise StudyError(str(error), where="model.slide_encoder") from error
    return spec_behind(tiles, f"{tiles.encoder}-{kept.encoder}-states", _identity(encoder, kept), width)


def _identity(encoder: SlideEncoder, kept: HiddenStates) -> str:
    about = [_VERSION, encoder.fingerprint, kept.stages(encoder.stages), kept.prototypes]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


class StateEncodingStage(SlideEncodingStage):
    """The second stage for patients whose tiles are encoded: from bag to hidden states.

    Parameters
    ----------
    kept
        Which states.
    staging, tiles
        As of :class:`SlideEncodingStage`.
    """

    def __init__(self, kept: HiddenStates, staging: Staging, tiles: str) -> None:
        self._kept = kept
        super().__init__(kept.encoder, kept.params, staging, tiles)

    @property
    def identity(self) -> str:
        """Of the encoder and the states that are kept."""
        return _identity(self._encoder, self._kept)

    def encode(self, row: Row) -> EncodedSlide:
        """Read and encode the slides of one patient, placed on one plane.

        Raises
        ------
        DataError
            If it is not known where the tiles lie.
        """
        from equipoise.models.slide_encoders.state_encoding import encode_states

        keys: Sequence[str] = json.loads(row["tiles"])
        bags, coords = zip(*(self._tiles.read(key) for key in keys), strict=True)
        corners = corners_um(
            np.concatenate(coords),
            [len(bag) for bag in bags],
            [self._tiles.mpp(key) for key in keys],
            self._extent_um,
        )
        if corners is None:
            raise DataError(
                "it is not known where the tiles lie in um: slides or imported features say no mpp"
            )
        before = time.perf_counter()
        bag = np.concatenate(bags)
        states, counts = encode_states(self._encoder, self._kept, bag, corners, self._extent_um)
        seconds = time.perf_counter() - before
        result = {"status": "ok", "n": len(states), "mpp": self._tiles.mpp(keys[0])}
        return EncodedSlide(counts, np.zeros_like(counts), states, result, len(bag), seconds)


@dataclass(frozen=True)
class StateStageFactory(SlideStageFactory):
    """Builds the stages of hidden states; nothing is planned.

    Attributes
    ----------
    kept
        Which states.
    """

    kept: HiddenStates

    @property
    def label(self) -> str:
        """Name of the encoder."""
        return self.kept.encoder

    def encoder(self) -> Callable[[Row], Row]:
        """The second stage, with its encoder built."""
        return StateEncodingStage(self.kept, self.staging, self.tiles)
