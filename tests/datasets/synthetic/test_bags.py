import h5py
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from equipoise.datasets.synthetic.bags import DIM, TILE_UM, draw_bag
from equipoise.datasets.synthetic.generate import is_done, plan, write_patient
from equipoise.datasets.synthetic.slide import tissue_of


@pytest.fixture(scope="module")
def jobs():
    return [job for job in plan("bench", 7) if job.cohort in ("syn-crc-a", "syn-crc-b")]


def _pooled(job) -> np.ndarray:
    rng = np.random.default_rng(job.number)
    features, _ = draw_bag(rng, tissue_of(job), job.seed, job.style.number)
    return features.astype(np.float32).mean(axis=0)


def test_bags_are_files_in_stamps_layout(jobs, tmp_path):
    job = jobs[0]
    row = write_patient(job, tmp_path)
    assert is_done(job, tmp_path)
    assert row["files"] == [f"syn-crc-a/features/{job.slides[0].barcode}.h5"]
    with h5py.File(tmp_path / row["files"][0]) as file:
        assert file["feats"].dtype == np.float16
        assert 48 <= len(file["feats"]) == len(file["coords"]) <= 200
        assert file["feats"].shape[1] == DIM
        assert file.attrs["unit"] == "um"
        assert file.attrs["tile_size_um"] == TILE_UM
        assert "SYNTHETIC" in file.attrs["notice"]
        assert len(np.unique(file["coords"][:], axis=0)) == len(file["coords"])
        assert (file["coords"][:] % TILE_UM == 0).all()
    again = write_patient(job, tmp_path / "again")
    assert again["sha256"] == row["sha256"]


def test_bags_carry_the_site_and_the_biology(jobs):
    a, b = ([job for job in jobs if job.cohort == name][:160] for name in ("syn-crc-a", "syn-crc-b"))
    pooled = {job.patient: _pooled(job) for job in (*a, *b)}

    def matrix(some):
        return np.stack([pooled[job.patient] for job in some])

    def score(train, test, label):
        model = LogisticRegression(C=0.01, max_iter=500).fit(matrix(train), [label(job) for job in train])
        return roc_auc_score([label(job) for job in test], model.decision_function(matrix(test)))

    assert score(a[:80] + b[:80], a[80:] + b[80:], lambda job: job.cohort == "syn-crc-a") > 0.95
    assert score(a[:100], a[100:], lambda job: job.latents.msi) > 0.65
