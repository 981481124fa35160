from dataclasses import replace

import numpy as np
import pytest

from equipoise.datasets.synthetic.generate import plan
from equipoise.datasets.synthetic.render import render
from equipoise.datasets.synthetic.slide import compose, scan_of, tissue_of
from equipoise.datasets.synthetic.stamps import STEPS, Kind, stamp_index, stamps


def _job(mpp: float, blur: float, **style):
    job = plan("tiny", 7)[2]
    changed = {"mpp": mpp, "blur_um": blur, "pen": 1.0, "fold": 1.0, **style}
    return replace(job, style=job.style.model_copy(update=changed), side_um=400)


@pytest.mark.parametrize(("mpp", "blur"), [(0.25, 0.35), (0.5, 0.0), (0.4961, 0.5)])
def test_neither_halo_nor_strip_height_changes_a_bit(mpp, blur):
    job = _job(mpp, blur)
    scene, _ = compose(job, tissue_of(job), job.slides[0])
    scan = scan_of(job)
    assert scene.artefacts.fold is not None
    assert scene.artefacts.pen is not None
    usual = np.concatenate(list(render(scene, scan)))
    assert usual.shape == (scan.height, scan.width, 4)
    wide = np.concatenate(list(render(scene, scan, strip_rows=256, halo=scan.blur_halo() + 97)))
    assert np.array_equal(usual, wide)


def test_the_same_tissue_is_scanned_at_any_resolution():
    fine, coarse = (_job(mpp, 0.0, pen=0.0) for mpp in (0.25, 0.5))
    pixels = []
    for job in (fine, coarse):
        scene, mask = compose(job, tissue_of(job), job.slides[0])
        image = np.concatenate(list(render(scene, scan_of(job))))[..., :3]
        factor = round(4 / job.style.mpp)
        side = image.shape[0] // factor
        pixels.append(image.reshape(side, factor, side, factor, 3).mean(axis=(1, 3)))
        assert mask.shape == (50, 50)
    assert np.corrcoef(pixels[0].ravel(), pixels[1].ravel())[0, 1] > 0.97


def test_stamps_are_centred_and_indexed_by_class():
    library = stamps(0.5)
    kinds = np.array([Kind.LYMPHOCYTE, Kind.EPI2, Kind.RED_CELL])
    zero = np.zeros(3, int)
    for step in range(len(STEPS)):
        index = stamp_index(kinds, np.array([0.3, np.pi + 0.3, -0.4]), zero, zero + step)
        for stamp in (library[i] for i in index):
            assert stamp.shape[0] == stamp.shape[1]
            assert stamp.shape[0] % 2 == 1
            assert stamp[0].max() == stamp[:, 0].max() == 0  # nothing is cut off
            y, x = np.average(np.indices(stamp.shape).reshape(2, -1), axis=1, weights=stamp.ravel())
            assert abs(y - len(stamp) // 2) < 1.5
            assert abs(x - len(stamp) // 2) < 1.5
    turned = stamp_index(kinds, np.array([0.3, 0.3, 0.3]), zero, zero)
    assert (
        turned == stamp_index(kinds, np.full(3, 0.3 + np.pi), zero, zero)
    ).all()  # half a turn is the same
