"""Patients of a cohort: barcodes, source sites, latents, missing data."""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.clinical import LABELS, TME
from equipoise.datasets.synthetic.latents import MIN_POSITIVES, Latents, assign_states, draw_latents
from equipoise.datasets.synthetic.params import CohortPlan, Knobs
from equipoise.datasets.synthetic.seeds import WHOLE_COHORT, Purpose, stream

#: Share of a cohort's patients that each of its source sites contributes.
SOURCE_SHARES = (0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True, slots=True)
class Patient:
    """One patient of a cohort; ``number`` counts from 1 and goes into every seed."""

    number: int
    barcode: str
    source: int
    latents: Latents
    missing: frozenset[str]

    def slide(self, part: int) -> str:
        """Barcode of a diagnostic slide (numbered from 0 here), in TCGA's grammar."""
        return f"{self.barcode}-01Z-00-DX{part + 1}"


def draw_patients(cohort: CohortPlan, knobs: Knobs, seed: int) -> list[Patient]:
    """All patients of a cohort.

    Which of them have MSI or HRD is drawn for the cohort as a whole; everything else belongs to the
    patient's own streams.
    """
    style = cohort.style
    number = style.number
    msi, hrd = assign_states(stream(seed, number, WHOLE_COHORT, Purpose.STATUS), cohort.patients, style)
    patients = []
    for k in range(cohort.patients):
        rng = stream(seed, number, k + 1, Purpose.LATENTS)
        latents = draw_latents(rng, msi=bool(msi[k]), hrd=bool(hrd[k]), style=style, knobs=knobs)
        source = int(stream(seed, number, k + 1, Purpose.SOURCE).choice(4, p=SOURCE_SHARES)) + 1
        missing = _draw_missing(stream(seed, number, k + 1, Purpose.MISSING), knobs)
        if source in style.no_rna_sources:
            missing |= {"rna"}
        barcode = f"SYN-{style.sources}{source}-{style.letters}{k + 1:03d}"
        patients.append(Patient(k + 1, barcode, source, latents, missing))
    for label, of in (("MSI", msi), ("HRD", hrd)):
        for state in (True, False):
            patients = _keep_enough(patients, label, of == state)
    return patients


def _draw_missing(rng: np.random.Generator, knobs: Knobs) -> frozenset[str]:
    probabilities = {"slide": knobs.missing_slide, "rna": knobs.missing_rna}
    probabilities |= dict.fromkeys(LABELS, knobs.missing_label)
    probabilities |= dict.fromkeys(TME, knobs.missing_tme)
    draws = rng.random(len(probabilities))
    return frozenset(name for (name, p), u in zip(probabilities.items(), draws, strict=True) if u < p)


def _keep_enough(patients: list[Patient], label: str, in_class: np.ndarray) -> list[Patient]:
    """Restore label and slide of the first patients of a class until at least two have both."""
    usable = [k for k in np.flatnonzero(in_class) if not {label, "slide"} & patients[k].missing]
    lacking = [k for k in np.flatnonzero(in_class) if k not in usable]
    result = list(patients)
    for k in lacking[: max(0, MIN_POSITIVES - len(usable))]:
        p = result[k]
        result[k] = Patient(p.number, p.barcode, p.source, p.latents, p.missing - {label, "slide"})
    return result
