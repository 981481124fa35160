from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from equipoise.datasets.synthetic import dicom
from equipoise.datasets.synthetic.generate import PatientJob, is_done, plan, write_patient

#: Container → vendor, objective that OpenSlide reports (None where the format has none), pictures.
EXPECTED = {
    "aperio": ("aperio", "20", {"thumbnail", "label", "macro"}),
    "philips": ("philips", "20", {"label", "macro"}),
    "generic": ("generic-tiff", None, set()),
    "trestle": ("trestle", "20", set()),
    "dicom": ("dicom", "20", {"label"}),
}


def _job(container: str, **style: object) -> PatientJob:
    job = plan("tiny", 7)[1]
    return replace(job, style=job.style.model_copy(update={"container": container, **style}))


def _written(job: PatientJob, root: Path) -> Path:
    write_patient(job, root)
    path = root / job.cohort / "slides" / job.files[0]
    return path / "level-0.dcm" if path.is_dir() else path


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: _written(_job(name), tmp_path_factory.mktemp(name)) for name in EXPECTED}


@pytest.mark.parametrize("name", EXPECTED)
def test_openslide_recognises_the_container(slides, name):
    vendor, objective, pictures = EXPECTED[name]
    with openslide.OpenSlide(slides[name]) as slide:
        assert slide.properties["openslide.vendor"] == vendor
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5, rel=1e-6)
        assert slide.properties.get("openslide.objective-power") == objective
        assert slide.level_dimensions == ((1280, 1280), (320, 320), (80, 80))
        assert slide.level_downsamples == (1, 4, 16)
        assert set(slide.associated_images) == pictures
        assert any("SYNTHETIC" in value for value in slide.properties.values())


def test_all_containers_hold_the_same_pixels(slides):
    pictures = {}
    for name, path in slides.items():
        with openslide.OpenSlide(path) as slide:
            regions = [slide.read_region((320, 320), level, (128, 128)) for level in range(2)]
            pictures[name] = np.stack([np.asarray(region.convert("RGB")) for region in regions])
    assert len(pictures) > 0
    for name, picture in pictures.items():
        assert np.array_equal(picture, pictures["aperio"]), name


@pytest.mark.parametrize("name", ["philips", "generic", "trestle", "dicom"])
def test_odd_resolution_and_no_objective(name, tmp_path):
    path = _written(replace(_job(name, mpp=0.4961, objective=None), side_um=300), tmp_path)
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.4961, rel=1e-6)
        assert "openslide.objective-power" not in slide.properties
        assert slide.dimensions == (608, 608)


def test_philips_levels_and_label_are_named(slides):
    with Image.open(slides["philips"]) as picture:
        descriptions = []
        for k in range(picture.n_frames):
            picture.seek(k)
            descriptions.append(str(picture.tag_v2[270]).split(" ")[0].split("\n")[0])
            assert picture.tag_v2.get(254) == (0 if k == 0 else 1)
    assert [d.split("=")[0] for d in descriptions[1:]] == ["level", "level", "Label", "Macro"]


def test_dicom_files_are_one_series_of_no_patient(slides):
    import pydicom

    folder = slides["dicom"].parent
    assert sorted(path.name for path in folder.iterdir())[0] == "level-0.dcm"
    headers = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    assert len({h.SeriesInstanceUID for h in headers}) == len({h.FrameOfReferenceUID for h in headers}) == 1
    assert len({h.SOPInstanceUID for h in headers}) == 4
    for header in headers:
        assert "SYNTHETIC" in str(header.PatientName)
        assert header.PatientID == folder.name[:12]
        frames = list(
            pydicom.encaps.generate_frames(header.PixelData, number_of_frames=header.NumberOfFrames)
        )
        assert len(frames) == header.NumberOfFrames
        assert all(frame.startswith(b"\xff\xd8") for frame in frames)
    assert headers[0].ImageType == ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    assert headers[-1].ImageType == ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]


def test_a_folder_is_one_slide(tmp_path):
    job = replace(_job("dicom"), side_um=300)
    row = write_patient(job, tmp_path)
    assert len(row["files"]) == len(row["sha256"]) == 4
    assert is_done(job, tmp_path)
    assert write_patient(job, tmp_path) == row  # replaces the folder
    (tmp_path / row["files"][1]).unlink()
    assert not is_done(job, tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_dicom_slide_needs_a_pixel_spacing(tmp_path):
    from equipoise.datasets.synthetic.containers import SlideInfo

    with pytest.raises(ValueError, match="pixel spacing"):
        dicom.DicomWriter(tmp_path / "x", SlideInfo("SYN-S1-CA001", "syn", 7, 256, 256, None, None, 80))
