"""``equipoise extract`` on real slides: readable slides give features, all others a reason."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

STUDY = """\
version: 1
name: real
cohorts:
  - {name: R, role: develop, clinical: clinical.csv, slides: slides.csv, slides_dir: SLIDES}
tasks:
  - {name: MSI, type: binary, column: MSI, positive: MSI-H}
"""
EXPECTED = {
    "CMU-1-Small-Region.svs": "ok",
    "TCGA-CR-7395-01A-01-TS1.svs": "no_mpp",
    "wsic-CMU-1-Small-Region.jpeg.tiff": "mpp_out_of_range",
    "openslide-python-unreadable.svs": "unreadable",
    "openslide-python-unopenable.tiff": "unreadable",
    "histolab-broken.svs": "not_a_slide",
    "kidney-48-5.tif": "not_a_slide",
    "openslide-python-small.svs": "too_few_tiles",
    "truncated.svs": "unreadable",
    "absent.svs": "missing",
}


@pytest.fixture
def folder(shared_data: Path, tmp_path: Path) -> Path:
    slides = shared_data / "slides"
    (tmp_path / "study.yaml").write_text(STUDY.replace("SLIDES", str(slides)))
    whole = (slides / "CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "truncated.svs").write_bytes(whole[: len(whole) // 2])
    labels = [f"P{i},{'MSI-H' if i % 2 else 'MSS'}" for i in range(len(EXPECTED))]
    (tmp_path / "clinical.csv").write_text("\n".join(["PATIENT,MSI", *labels]) + "\n")
    return tmp_path


def slides_table(folder: Path, **mpp: float) -> None:
    rows = []
    for number, name in enumerate(EXPECTED):
        path = str(folder / name) if name == "truncated.svs" else name
        rows.append(f"P{number},{path},{mpp.get(name.split('-')[0], '')}")
    (folder / "slides.csv").write_text("\n".join(["PATIENT,FILENAME,MPP", *rows]) + "\n")


def extract(folder: Path, out: str, *settings: str) -> tuple[int, dict[str, str], str]:
    """Exit code, status by file and standard error."""
    command = [
        sys.executable,
        "-m",
        "equipoise.jobs.extract",
        "-c",
        "study.yaml",
        "-o",
        out,
        "--address",
        "local",
    ]
    options = [part for setting in settings for part in ("-s", setting)]
    done = subprocess.run([*command, "--max-cpus", "2", *options], cwd=folder, capture_output=True, text=True)
    table = pd.read_parquet(folder / out / "manifest" / "slides.parquet")
    by_file = {Path(path).name: status for path, status in zip(table["path"], table["status"], strict=True)}
    return done.returncode, by_file, done.stderr


@pytest.mark.real
@pytest.mark.slow
def test_every_real_file_gets_its_status_and_the_exit_code_follows_max_fail(folder: Path) -> None:
    slides_table(folder)
    command = [
        sys.executable,
        "-m",
        "equipoise.jobs.validate",
        "-c",
        "study.yaml",
        "--check-slides",
        "-o",
        "looked",
    ]
    looked = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert looked.returncode == 5, looked.stderr  # as the extraction will say: more than max_fail
    assert "7 of 10 slides cannot be used" in looked.stderr
    headers = pd.read_parquet(folder / "looked" / "manifest" / "slides.parquet")
    seen = {Path(path).name: status for path, status in zip(headers["path"], headers["status"], strict=True)}
    # What shows only when pixels are read, a header cannot tell.
    pixels = {"openslide-python-unreadable.svs": "ok", "openslide-python-small.svs": "ok"}
    assert seen == EXPECTED | pixels

    code, status, said = extract(folder, "first")
    assert status == EXPECTED
    assert code == 5
    assert "8 of 10 slides failed" in said
    exclusions = pd.read_csv(folder / "first" / "manifest" / "exclusions.csv")
    assert set(exclusions["patient"]) == {f"P{i}" for i in range(1, len(EXPECTED))}
    assert exclusions["reason"].str.len().min() > 10

    # The same run folder with another tolerance: nothing is extracted twice, and the job is content.
    code, status, said = extract(folder, "first", "features.max_fail=0.9")
    assert (code, status) == (0, EXPECTED)
    assert "tried=0 skipped=10" in said

    # Pixel sizes in the table correct the 100-fold error and admit the slide without one, but only at its resolution.
    slides_table(folder, wsic=0.499, TCGA=4.5)
    code, status, said = extract(folder, "corrected", "features.max_fail=0.9")
    assert code == 0
    assert status["wsic-CMU-1-Small-Region.jpeg.tiff"] == "ok"
    assert status["TCGA-CR-7395-01A-01-TS1.svs"] == "upsampling"
    assert "tried=2 skipped=8" in said

    _, status, _ = extract(folder, "coarse", "features.max_fail=0.9", "features.mpp=4.5")
    assert status["TCGA-CR-7395-01A-01-TS1.svs"] == "ok"
