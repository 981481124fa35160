import cv2
import numpy as np
import pytest

from equipoise.models.encoders.handcrafted import Handcrafted, describe, feature_names


@pytest.fixture(scope="module")
def encoder() -> Handcrafted:
    return Handcrafted()


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    """uint8 ``[6, 96, 96, 3]``: pink with purple spots of different density."""
    rng = np.random.default_rng(5)
    tiles = np.full((6, 96, 96, 3), (228, 170, 205), np.uint8)
    for at, tile in enumerate(tiles):
        for x, y in rng.integers(4, 92, (4 + 12 * at, 2)):
            cv2.circle(tile, (int(x), int(y)), 4, (90, 60, 140), -1)
    return np.clip(tiles + rng.normal(0, 5, tiles.shape), 0, 255).astype(np.uint8)


def named(tile: np.ndarray) -> dict[str, float]:
    return dict(zip(feature_names(), describe(tile), strict=True))


def test_shape_type_and_names(encoder: Handcrafted, tiles: np.ndarray) -> None:
    features = encoder(tiles)
    assert (features.shape, features.dtype) == ((6, 90), np.float16)
    assert np.isfinite(features).all()
    assert len(set(feature_names())) == encoder.dim == 90


def test_a_vector_depends_on_its_tile_alone(encoder: Handcrafted, tiles: np.ndarray) -> None:
    together = encoder(tiles)
    alone = np.concatenate([encoder(tile[None]) for tile in tiles[::-1]])[::-1]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, Handcrafted()(np.asfortranarray(tiles)))
    big = np.concatenate([tiles, tiles], axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(encoder(tiles), together)  # other sizes in between leave no trace
    assert encoder(big).shape == (6, 90)


def test_a_vector_does_not_depend_on_where_its_tile_lies_in_memory(tiles: np.ndarray) -> None:
    """Libraries choose other code for other alignments; the last bit of a gradient must not follow."""
    tile = tiles[3]
    memory = np.empty(tile.size + 128, np.uint8)
    described = set()
    for offset in range(0, 128, 5):
        moved = memory[offset : offset + tile.size].reshape(tile.shape)
        moved[...] = tile
        held = [np.empty(1 + 37 * offset * k, np.uint8) for k in range(4)]  # later arrays lie elsewhere, too
        described.add(tuple(describe(moved)))
        del held
    assert len(described) == 1


def test_it_says_what_it_is_without_being_built(encoder: Handcrafted) -> None:
    known = Handcrafted.identify()
    assert (known.dim, known.hash, known.batch_size) == (90, encoder.hash, encoder.batch_size)


def test_numbers_are_pinned(encoder: Handcrafted) -> None:
    """A change here changes the features of every store: raise ``VERSION`` and pin anew."""
    y, x = np.mgrid[:128, :128]
    tile = np.stack([200 - y // 2, 120 + 60 * np.sin(x / 5) * np.cos(y / 9), 180 - x // 3], axis=2).astype(
        np.uint8
    )
    expected = {
        "haematoxylin mean": 0.19498,
        "eosin p95": 0.36581,
        "residual gradient mean at 1 px": 0.0033988,
        "haematoxylin coherence at 2.2 px": 0.64049,
        "eosin laplacian sd at 4.6 px": 0.055284,
        "nuclei share": 0.29938,
        "lbp 4 at full": 0.48136,
        "lbp 9 at half": 0.016389,
        "hue mean": 137.54,
        "grey sd": 18.407,
    }
    got = named(tile)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=2e-3), name
    assert encoder.hash.startswith("11912b14613bf14a")


def test_stain_percentiles_are_those_of_the_pixels(tiles: np.ndarray) -> None:
    tile = tiles[3]
    density = -np.log10((tile.astype(float) + 1) / 256)
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    stains = density @ np.linalg.inv(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    got = named(tile)
    for at, stain in enumerate(("haematoxylin", "eosin", "residual")):
        assert got[f"{stain} mean"] == pytest.approx(stains[..., at].mean(), abs=1e-4)
        assert got[f"{stain} sd"] == pytest.approx(stains[..., at].std(), abs=1e-4)
        for percentile in (5, 25, 50, 75, 95):
            exact = np.percentile(stains[..., at], percentile)
            assert got[f"{stain} p{percentile}"] == pytest.approx(exact, abs=0.011)


def test_quarter_turns_change_nothing_that_has_no_direction(tiles: np.ndarray) -> None:
    tile = np.ascontiguousarray(tiles[4])
    straight, turned = named(tile), named(np.ascontiguousarray(np.rot90(tile)))
    undirected = [n for n in feature_names() if not any(word in n for word in ("2.2", "4.6", "half"))]
    assert len(undirected) > 50
    for name in undirected:  # coarser scales take every second pixel: turned, those are other pixels
        assert turned[name] == pytest.approx(straight[name], rel=1e-3, abs=1e-3), name


def test_coherence_tells_stripes_from_noise() -> None:
    x = np.mgrid[:128, :128][1]
    stripes = np.repeat((180 + 40 * np.sin(x / 3))[..., None], 3, axis=2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(100, 220, (128, 128, 3), dtype=np.uint8)
    for scale in ("1", "2.2"):
        name = f"haematoxylin coherence at {scale} px"
        assert named(stripes)[name] > 0.9
        assert named(noise)[name] < 0.5


def test_counts_the_nuclei_that_are_there() -> None:
    tile = np.full((224, 224, 3), (230, 180, 215), np.uint8)
    for x in range(20, 220, 30):
        for y in range(20, 220, 30):
            cv2.circle(tile, (x, y), 6, (80, 50, 130), -1)
    cv2.circle(tile, (5, 5), 1, (80, 50, 130), -1)  # dust
    got = named(tile)
    assert np.expm1(got["nuclei number"]) == pytest.approx(49)
    area = np.expm1(got["nuclei area mean"])
    assert np.pi * 6**2 < area < np.pi * 8**2  # blurring adds about a pixel all around
    assert got["nuclei share"] == pytest.approx(49 * area / 224**2)


def test_binary_patterns_are_shares(tiles: np.ndarray) -> None:
    got = named(tiles[2])
    for size in ("full", "half"):
        assert sum(got[f"lbp {k} at {size}"] for k in range(10)) == pytest.approx(1.0)
    flat = named(np.full((64, 64, 3), 200, np.uint8))
    assert flat["lbp 8 at full"] == 1.0  # all neighbours alike: eight ones


@pytest.mark.parametrize("value", [0, 128, 255])
def test_empty_tiles_give_finite_numbers(encoder: Handcrafted, value: int) -> None:
    features = encoder(np.full((1, 224, 224, 3), value, np.uint8))
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= 10


def test_more_nuclei_is_visible_in_the_vector(encoder: Handcrafted, tiles: np.ndarray) -> None:
    column = feature_names().index("haematoxylin mean")
    assert (np.diff(encoder(tiles)[:, column].astype(float)) > 0).all()


@pytest.mark.parametrize(
    ("tiles", "says"),
    [
        (np.zeros((1, 96, 96, 3), np.float32), "uint8"),
        (np.zeros((96, 96, 3), np.uint8), r"\[B, H, W, 3\]"),
        (np.zeros((1, 3, 96, 96), np.uint8), r"\[B, H, W, 3\]"),
        (np.zeros((1, 48, 48, 3), np.uint8), "at least 64 px"),
    ],
)
def test_wrong_input_is_refused(encoder: Handcrafted, tiles: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encoder(tiles)


def test_no_tiles_is_no_vectors(encoder: Handcrafted) -> None:
    assert encoder(np.zeros((0, 96, 96, 3), np.uint8)).shape == (0, 90)
