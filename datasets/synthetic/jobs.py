"""The jobs of a preset: one small job per patient, and whether it is done."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from equipoise.datasets.synthetic.catalogue import resolve_preset
from equipoise.datasets.synthetic.containers import suffix
from equipoise.datasets.synthetic.faults import assign_faults
from equipoise.datasets.synthetic.latents import Latents
from equipoise.datasets.synthetic.params import (
    SLIDE_FAULTS,
    CohortPlan,
    Content,
    FaultName,
    Knobs,
    Preset,
    SiteStyle,
)
from equipoise.datasets.synthetic.patients import Patient, draw_patients

#: Changes whenever the same seed would give other bytes.
VERSION = 1

#: Knobs of the tables: slides do not depend on them.
_TABLE_KNOBS = {
    "rho_omics",
    "organ",
    "tme_noise",
    "b_shared",
    "b_omics",
    "b_image",
    "missing_slide",
    "missing_rna",
    "missing_label",
    "missing_tme",
}


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """One slide: its barcode, its number within the patient (from 0), and what is wrong with it."""

    barcode: str
    part: int = 0
    fault: FaultName | None = None


@dataclass(frozen=True, slots=True)
class PatientJob:
    """Everything that determines the slides of one patient; small and picklable."""

    seed: int
    cohort: str
    style: SiteStyle
    knobs: Knobs
    side_um: float
    number: int
    patient: str
    source: int
    latents: Latents
    slides: tuple[SlidePlan, ...]
    content: Content = "slides"
    mosaic: int = 1

    @property
    def files(self) -> tuple[str, ...]:
        """Names in the cohort's folder ``slides`` (or ``features``): files, or folders of DICOM files."""
        return tuple(slide.barcode + file_suffix(self.content, self.style) for slide in self.slides)

    def fingerprint(self) -> str:
        """Hash of all that shapes the slides: another seed, knob or version gives another one."""
        content: dict[str, Any] = {
            "version": VERSION,
            "style": self.style.model_dump(),
            "knobs": self.knobs.model_dump(exclude=_TABLE_KNOBS),
            "latents": asdict(self.latents),
            "slides": [asdict(slide) for slide in self.slides],
        }
        content |= {f.name: getattr(self, f.name) for f in fields(self) if f.name not in content}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def plan(preset: str | Preset, seed: int) -> list[PatientJob]:
    """Jobs of all patients that have a slide, in manifest order.

    Raises
    ------
    DataError
        If no preset has that name.
    """
    preset = resolve_preset(preset)
    return [job for cohort in preset.cohorts for job in _cohort_jobs(cohort, preset, seed)]


def file_suffix(content: Content, style: SiteStyle) -> str:
    """Ending of a slide's file, or of its bag of features."""
    return suffix(style.container) if content == "slides" else ".h5"


def content_folder(content: Content) -> str:
    """Folder of a cohort's slides, or of its bags of features."""
    return "slides" if content == "slides" else "features"


def planned_slides(patient: Patient, fault: FaultName | None) -> tuple[SlidePlan, ...]:
    """Slides of a patient; none where they are missing."""
    if "slide" in patient.missing:
        return ()
    if fault == "two_slides":
        return tuple(SlidePlan(patient.slide(part), part) for part in range(2))
    return (SlidePlan(patient.slide(0), 0, fault if fault in SLIDE_FAULTS else None),)


def _cohort_jobs(cohort: CohortPlan, preset: Preset, seed: int) -> list[PatientJob]:
    patients = draw_patients(cohort, preset.knobs, seed)
    assigned = assign_faults(cohort.faults, patients)
    return [
        PatientJob(
            seed=seed,
            cohort=cohort.name,
            style=cohort.style,
            knobs=preset.knobs,
            side_um=cohort.side_um,
            number=patient.number,
            patient=patient.barcode,
            source=patient.source,
            latents=patient.latents,
            slides=slides,
            content=preset.content,
            mosaic=cohort.mosaic,
        )
        for patient in patients
        if (slides := planned_slides(patient, assigned.get(patient.barcode)))
    ]


def receipt_path(job: PatientJob, root: Path) -> Path:
    """Where ``write_patient`` records what it wrote."""
    return root / job.cohort / "truth" / "receipts" / f"{job.patient}.json"


def read_receipt(job: PatientJob, root: Path) -> dict[str, Any] | None:
    """What ``write_patient`` recorded for this job; None if it did not run or ran with other settings."""
    path = receipt_path(job, root)
    if not path.is_file():
        return None
    receipt = json.loads(path.read_text(encoding="utf-8"))
    return receipt if receipt["fingerprint"] == job.fingerprint() else None


def is_done(job: PatientJob, root: Path) -> bool:
    """Whether the slides exist, have the right size, and were made from this job."""
    receipt = read_receipt(job, root)
    if receipt is None:
        return False
    folder = root / job.cohort / content_folder(job.content)
    sizes = {file: entry["bytes"] for file, entry in receipt["slides"].items()}
    return {file.split("/")[0] for file in sizes} == set(job.files) and all(
        (folder / file).is_file() and (folder / file).stat().st_size == size for file, size in sizes.items()
    )
