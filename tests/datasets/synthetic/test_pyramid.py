import numpy as np
import pytest
import simplejpeg

from equipoise.datasets.synthetic.pyramid import Pyramid, level_sizes


class _Sink:
    def __init__(self) -> None:
        self.tiles: dict[int, list[bytes]] = {0: [], 1: [], 2: []}

    def tile(self, level: int, jpeg: bytes) -> None:
        self.tiles[level].append(jpeg)

    def assembled(self, level: int, width: int, height: int) -> np.ndarray:
        across = -(-width // 256)
        tiles = [simplejpeg.decode_jpeg(jpeg) for jpeg in self.tiles[level]]
        rows = [np.concatenate(tiles[k : k + across], axis=1) for k in range(0, len(tiles), across)]
        return np.concatenate(rows)


@pytest.mark.parametrize("strip", [256, 512])
def test_levels_show_the_same_picture(strip):
    width, height = 1296, 784
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    base = np.stack([120 + 60 * np.sin(x / 150), 120 + 60 * np.cos(y / 90), 0 * x + 128, 0 * x + 255], -1)
    base = base.astype(np.uint8)
    sink = _Sink()
    pyramid = Pyramid(sink, width, height, 95)
    for top in range(0, height, strip):
        pyramid.push(base[top : top + strip])
    thumbnail = pyramid.finish()
    for level, (w, h) in enumerate(level_sizes(width, height)):
        assert (w, h) == (width // 4**level, height // 4**level)
        whole = sink.assembled(level, w, h).astype(int)
        expected = base[..., :3].reshape(h, 4**level, w, 4**level, 3).mean(axis=(1, 3))
        assert np.abs(whole[:h, :w] - expected).mean() < 2
        if w % 256:  # edge tiles repeat the last column instead of padding with black
            assert np.abs(whole[:h, w:] - whole[:h, w - 1 : w]).max() < 40
    assert max(thumbnail.shape[:2]) <= 768
    assert np.abs(thumbnail[..., :3].mean(axis=(0, 1)) - base[..., :3].mean(axis=(0, 1))).max() < 2


def test_glass_is_encoded_once():
    sink = _Sink()
    pyramid = Pyramid(sink, 1024, 512, 80)
    pyramid.push(np.full((512, 1024, 4), 243, np.uint8))
    pyramid.finish()
    assert len(sink.tiles[0]) == 8
    assert len({id(jpeg) for jpeg in sink.tiles[0]}) == 1


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        Pyramid(_Sink(), 1000, 1024, 80)
