"""Participant flow: who was included, and who was left out at which stage and why (STARD).

Patients and slides are dropped only through :class:`Flow`, so that every loss is a row with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: Stages in their order; a study has those that it needs, the last four but one need extracted slides.
STAGES = ("in table", "unique", "has slide", "has table", "has label", "readable", "mpp ok", "tissue", "used")
EXCLUSION_COLUMNS = ("cohort", "patient", "slide", "stage", "reason")

#: Status of a slide after extraction → stage at which it is lost. Others count as unreadable.
STATUS_STAGE = {
    "missing": "readable",
    "unreadable": "readable",
    "not_a_slide": "readable",
    "error": "readable",
    "no_mpp": "mpp ok",
    "mpp_out_of_range": "mpp ok",
    "upsampling": "mpp ok",
    "wrong_stain": "tissue",
    "no_tissue": "tissue",
    "too_few_tiles": "tissue",
}


class Flow:
    """Patients and slides of one cohort in the participant flow.

    Parameters
    ----------
    cohort
        Its name.
    slides
        Slide → patient of everything still in; ``None`` for a cohort without a slides table.
    patients
        Patients still in.

    Attributes
    ----------
    exclusions
        Rows (cohort, patient, slide, stage, reason); ``slide`` is empty where the patient as a whole is left
        out.
    counts
        A row per passed stage: cohort, stage, patients, slides, excluded (patients lost at it),
        excluded_slides.
    """

    def __init__(self, cohort: str, patients: Iterable[str], slides: Mapping[str, str] | None) -> None:
        self.cohort = cohort
        self.patients: dict[str, None] = dict.fromkeys(patients)
        self.slides = None if slides is None else dict(slides)
        self.exclusions: list[dict[str, str]] = []
        self.counts: list[dict[str, Any]] = []
        self._lost_patients = self._lost_slides = 0

    def drop_patients(self, reasons: Mapping[str, str], stage: str) -> None:
        """Leave out patients, and with them their slides."""
        lost = {patient: reason for patient, reason in reasons.items() if patient in self.patients}
        for patient, reason in lost.items():
            self.note(patient, "", stage, reason)
            del self.patients[patient]
        self._lost_patients += len(lost)
        owned = {slide: patient for slide, patient in (self.slides or {}).items() if patient in lost}
        self.drop_slides({slide: f"its patient is left out: {lost[p]}" for slide, p in owned.items()}, stage)

    def drop_slides(self, reasons: Mapping[str, str], stage: str) -> None:
        """Leave out slides; their patients stay until :meth:`drop_slideless`."""
        for slide, reason in reasons.items():
            if self.slides is not None and slide in self.slides:
                self.note(self.slides.pop(slide), slide, stage, reason)
                self._lost_slides += 1

    def drop_slideless(self, stage: str, reason: str) -> None:
        """Leave out patients that have no slide left."""
        owners = set((self.slides or {}).values())
        self.drop_patients({p: reason for p in list(self.patients) if p not in owners}, stage)

    def note(self, patient: str, slide: str, stage: str, reason: str) -> None:
        """Add a row of exclusions, for instance for a table row without a key."""
        row = (self.cohort, patient, slide, stage, reason)
        self.exclusions.append(dict(zip(EXCLUSION_COLUMNS, row, strict=True)))

    def close(self, stage: str) -> None:
        """Count who is left after a stage."""
        self.counts.append(
            {
                "cohort": self.cohort,
                "stage": stage,
                "patients": len(self.patients),
                "slides": len(self.slides or {}),
                "excluded": self._lost_patients,
                "excluded_slides": self._lost_slides,
            }
        )
        self._lost_patients = self._lost_slides = 0


def exclusion_table(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Exclusions as a table, also when there are none."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(EXCLUSION_COLUMNS), dtype=object)


def flow_text(counts: Iterable[Mapping[str, Any]]) -> str:
    """The flow in one line per cohort, for error messages and terminals."""
    by_cohort: dict[str, list[str]] = {}
    for row in counts:
        by_cohort.setdefault(row["cohort"], []).append(f"{row['stage']} {row['patients']}")
    return "; ".join(f"{cohort}: {' → '.join(steps)}" for cohort, steps in by_cohort.items())
