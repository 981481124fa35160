"""DICOM whole-slide images: one folder per slide, one file per level, one for the label.

A folder of its own, because OpenSlide takes all files beside the one it opens. Frames stream into the files
as encapsulated pixel data of undefined length behind a header that pydicom writes (PS3.5 A.4, PS3.3 A.32.8;
checked with OpenSlide, with no conformance validator).
"""

import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.synthetic.containers import SlideInfo
from equipoise.datasets.synthetic.pictures import label_picture
from equipoise.datasets.synthetic.pyramid import LEVELS, STEP, TILE, encode_jpeg, level_sizes

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
#: Sorts behind ``level-0.dcm``: readers that open a folder's first file get the base level.
_LABEL_FILE = "slide-label.dcm"
_MOMENT = ("20000101", "120000")


class DicomWriter:
    """Writes one folder of ``.dcm`` files.

    Raises
    ------
    DataError
        If pydicom is not installed.
    """

    def __init__(self, path: Path, info: SlideInfo) -> None:
        if info.mpp is None:
            raise ValueError("a DICOM slide cannot be without a pixel spacing")
        path.mkdir()
        self._path, self._info, self._mpp = path, info, info.mpp
        self._files: list[BinaryIO] = []
        for level, (width, height) in enumerate(level_sizes(info.width, info.height)):
            file = (path / f"level-{level}.dcm").open("wb")
            self._files.append(file)
            _start(file, _level_header(info, level, width, height, self._mpp * STEP**level))

    def tile(self, level: int, jpeg: bytes) -> None:
        """Take the next tile of a level."""
        _frame(self._files[level], jpeg)

    def finish(self, thumbnail: np.ndarray) -> None:
        """Write the label and end all files; the format has no thumbnail."""
        label = label_picture(self._info.barcode, self._info.cohort)
        file = (self._path / _LABEL_FILE).open("wb")
        self._files.append(file)
        _start(file, _label_header(self._info, *label.shape[:2]))
        _frame(file, encode_jpeg(label, 80))
        for each in self._files:
            each.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()


def _start(file: BinaryIO, header: "Dataset") -> None:
    """Header, then the opening of the pixel data with an empty offset table."""
    from pydicom import dcmwrite

    dcmwrite(file, header, enforce_file_format=True)
    file.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF))
    file.write(struct.pack("<HHI", 0xFFFE, 0xE000, 0))


def _frame(file: BinaryIO, jpeg: bytes) -> None:
    padded = jpeg + b"\0" * (len(jpeg) % 2)
    file.write(struct.pack("<HHI", 0xFFFE, 0xE000, len(padded)) + padded)


def _level_header(info: SlideInfo, level: int, width: int, height: int, mpp: float) -> "Dataset":
    kind = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    if level:
        kind = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    frames = -(-width // TILE) * -(-height // TILE)
    header = _header(info, f"level-{level}", kind, level + 1)
    _matrix(header, (TILE, TILE), frames, (height, width), mpp)
    return header


def _label_header(info: SlideInfo, height: int, width: int) -> "Dataset":
    header = _header(info, "label", ["ORIGINAL", "PRIMARY", "LABEL", "NONE"], LEVELS + 1)
    _matrix(header, (height, width), 1, (height, width), 60.0)
    header.SpecimenLabelInImage = "YES"
    header.BurnedInAnnotation = "YES"
    return header


def _header(info: SlideInfo, name: str, kind: list[str], number: int) -> "Dataset":
    """Everything that does not depend on the size of the picture."""
    try:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import UID, generate_uid
    except ImportError:
        raise DataError(
            "DICOM slides need pydicom, which is not installed", fix="pip install pydicom"
        ) from None

    def uid(what: str) -> UID:
        return generate_uid(entropy_srcs=["equipoise", str(info.seed), info.barcode, what])

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_STORAGE)
    meta.MediaStorageSOPInstanceUID = uid(name)
    meta.TransferSyntaxUID = UID(_JPEG_BASELINE)
    header = Dataset()
    header.file_meta = meta
    header.SOPClassUID = UID(_STORAGE)
    header.SOPInstanceUID = uid(name)
    header.StudyInstanceUID, header.SeriesInstanceUID = uid("study"), uid("series")
    header.FrameOfReferenceUID = uid("frame")
    header.PatientID = "-".join(info.barcode.split("-")[:3])
    header.PatientName = "SYNTHETIC^NO PATIENT"
    header.PatientBirthDate = header.PatientSex = header.AccessionNumber = ""
    header.ReferringPhysicianName = header.StudyID = ""
    header.StudyDate = header.ContentDate = _MOMENT[0]
    header.StudyTime = header.ContentTime = _MOMENT[1]
    header.AcquisitionDateTime = "".join(_MOMENT)
    header.Modality = "SM"
    header.Manufacturer = "SYNTHETIC"
    header.ManufacturerModelName = info.cohort
    header.DeviceSerialNumber = "SYNTHETIC"
    header.SoftwareVersions = "equipoise"
    header.ImageComments = "SYNTHETIC: generated tissue of no patient"
    header.SeriesDescription = info.barcode
    header.ContainerIdentifier = info.barcode
    header.ImageType = kind
    header.SeriesNumber, header.InstanceNumber = 1, number
    header.SpecimenLabelInImage = header.BurnedInAnnotation = "NO"
    header.VolumetricProperties = "VOLUME"
    header.FocusMethod, header.ExtendedDepthOfField = "AUTO", "NO"
    optics = Dataset()
    optics.OpticalPathIdentifier = "1"
    if info.objective is not None:
        optics.ObjectiveLensPower = info.objective
    header.OpticalPathSequence = [optics]
    header.NumberOfOpticalPaths = 1
    return header


def _matrix(header: "Dataset", tile: tuple[int, int], frames: int, size: tuple[int, int], mpp: float) -> None:
    """Pixel format, size and spacing; ``tile`` and ``size`` are (rows, columns)."""
    from pydicom.dataset import Dataset

    header.SamplesPerPixel, header.PlanarConfiguration = 3, 0
    header.PhotometricInterpretation = "YBR_FULL_422"
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.LossyImageCompression = "01"
    header.LossyImageCompressionMethod = "ISO_10918_1"
    header.Rows, header.Columns = tile
    header.NumberOfFrames = frames
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = size
    header.TotalPixelMatrixFocalPlanes = 1
    header.ImagedVolumeWidth, header.ImagedVolumeHeight = size[1] * mpp / 1000, size[0] * mpp / 1000
    header.ImagedVolumeDepth = 4.0
    header.DimensionOrganizationType = "TILED_FULL"
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    header.TotalPixelMatrixOriginSequence = [origin]
    header.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    measures = Dataset()
    measures.PixelSpacing = [f"{mpp / 1000:.8f}"] * 2
    measures.SliceThickness = "0.004"
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    header.SharedFunctionalGroupsSequence = [shared]
