"""Models of slide vectors: the way back to tiles through the slide encoder, against a closed form."""

import numpy as np
import pytest
import torch
from tests.platform.explain.cases import TASKS, Dot, case_of, output
from torch import Tensor

from equipoise.models.batch import CaseShape
from equipoise.models.slide_encoders.protocol import SlideTokens, WithoutStages
from equipoise.platform.errors import StudyError
from equipoise.platform.explain.attribution import tile_scores
from equipoise.platform.explain.checks import reinitialised
from equipoise.platform.explain.explained import Explained
from equipoise.platform.explain.slide_vectors import SlideTilesBehind
from equipoise.platform.training.targets import Targets

RNG = np.random.default_rng(5)
#: 3 features of a tile become 2 of a slide.
MIX = RNG.normal(size=(3, 2))


class MeanMix(WithoutStages):
    """The mean tile, mixed."""

    fingerprint = "mean"
    frozen = False

    def dim(self, tile_dim: int) -> int:
        return 2

    def readout(self, state: SlideTokens) -> Tensor:
        mask = state.tiles.mask[..., None]
        mean = (state.tokens * mask).sum(1) / mask.sum(1)
        return (mean.detach() if self.frozen else mean) @ torch.from_numpy(MIX).to(mean)


class Store:
    """Tiles of two slides."""

    extent = 100.0

    def __init__(self) -> None:
        self.bags = {
            "P1-1": RNG.normal(size=(6, 3)).astype(np.float16),
            "P1-2": RNG.normal(size=(4, 3)).astype(np.float16),
        }

    def read(self, slide: str) -> tuple[np.ndarray, np.ndarray]:
        bag = self.bags[slide]
        return bag, np.stack([200 * np.arange(len(bag)), np.zeros(len(bag))], axis=1).astype(np.int32)

    def mpp(self, slide: str) -> float:
        return 0.5


class Trained:
    def __init__(self, weights: np.ndarray) -> None:
        self.model = Dot(torch.from_numpy(weights))
        self.targets = Targets(TASKS[:1], CaseShape(2))


def test_contributions_of_tiles_behind_a_slide_encoder() -> None:
    store, w = Store(), RNG.normal(size=2)
    vectors = np.stack([bag.astype(float).mean(axis=0) @ MIX for bag in store.bags.values()])
    case = case_of(vectors, slides=("P1-1", "P1-2"), tiles=(1, 1), mpp=(0.5, 0.5))
    behind, trained = SlideTilesBehind(MeanMix(), store), Trained(w)
    stored = float(Explained.of(trained, case, output()).value())
    for at, slide in enumerate(case.slides):
        tiles = behind.case(case, at)
        model = behind.model(trained, case, at, 3)
        assert float(Explained.of(model, tiles, output()).value()) == pytest.approx(
            stored, abs=2e-3
        )  # float16
        (scores,) = tile_scores([model], [tiles], "MSI", method="gradient_input")
        own = store.bags[slide].astype(float) @ MIX @ w
        # f is the mean over two slides of w . vector, and a vector the mean over n tiles.
        np.testing.assert_allclose(scores.score, (own - own.mean()) / len(own) / 2, rtol=1e-3, atol=1e-5)
        assert (scores.slide, scores.side) == (slide, 200.0)
        fresh = reinitialised(model.model, 1)
        assert not torch.allclose(next(fresh.parameters()), next(model.model.parameters()))


def test_an_encoder_that_gives_no_gradient_says_so() -> None:
    encoder = MeanMix()
    encoder.frozen = True
    case = case_of(RNG.normal(size=(2, 2)), slides=("P1-1", "P1-2"), tiles=(1, 1), mpp=(0.5, 0.5))
    behind, trained = SlideTilesBehind(encoder, Store()), Trained(RNG.normal(size=2))
    tiles, model = behind.case(case, 0), behind.model(trained, case, 0, 3)
    with pytest.raises(StudyError, match="no gradient comes back"):
        tile_scores([model], [tiles], "MSI")
    assert len(tile_scores([model], [tiles], "MSI", method="occlusion")[0]) == 6
