"""Tables of a cohort: clinical, slides, omics, and the truth behind them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.atomic_io import atomic_path, write_text
from equipoise.datasets.synthetic.clinical import COLUMNS, draw_labels, draw_survival
from equipoise.datasets.synthetic.faults import assign_faults, corrupt_clinical
from equipoise.datasets.synthetic.genes import PANEL
from equipoise.datasets.synthetic.jobs import file_suffix, planned_slides
from equipoise.datasets.synthetic.latents import observe
from equipoise.datasets.synthetic.morphology import draw_morphology
from equipoise.datasets.synthetic.omics import (
    ARMS,
    MUTATION_COLUMNS,
    draw_arms,
    draw_batch,
    draw_counts,
    draw_mutations,
    draw_organ_profiles,
    draw_tissue,
)
from equipoise.datasets.synthetic.params import CohortPlan, Content, Knobs, Preset
from equipoise.datasets.synthetic.patients import SOURCE_SHARES, Patient, draw_patients
from equipoise.datasets.synthetic.seeds import WHOLE_COHORT, Purpose, stream

if TYPE_CHECKING:
    import pandas as pd

#: Institutions behind the source-site codes. Some own codes in several cohorts, as in TCGA.
_INSTITUTIONS = ("Northfield General", "Saint Emery University", "Lakeside Cancer Centre", "Harbour Clinic")
_STUDIES = {
    "crc": "Colorectal adenocarcinoma",
    "luad": "Lung adenocarcinoma",
    "ucec": "Endometrial carcinoma",
    "stad": "Gastric adenocarcinoma",
    "ov": "Ovarian carcinoma",
}


@dataclass(frozen=True, slots=True)
class CohortTables:
    """All tables of one cohort. ``truth`` is for tests and benchmarks, never for training."""

    clinical: "pd.DataFrame"
    slides: "pd.DataFrame"
    omics: "dict[str, pd.DataFrame]"
    truth: "pd.DataFrame"
    faults: "pd.DataFrame"


def build_tables(cohort: CohortPlan, knobs: Knobs, seed: int, content: Content = "slides") -> CohortTables:
    """Tables of one cohort, in memory; patients in the order of their numbers."""
    import pandas as pd

    patients = draw_patients(cohort, knobs, seed)
    assigned = assign_faults(cohort.faults, patients)
    rows = [_clinical_row(patient, cohort, knobs, seed) for patient in patients]
    clinical = pd.DataFrame(
        [_masked(row, patient) for (row, _), patient in zip(rows, patients, strict=True)],
        columns=pd.Index(COLUMNS),
    )
    slides = [
        (patient.barcode, slide.barcode + file_suffix(content, cohort.style))
        for patient in patients
        for slide in planned_slides(patient, assigned.get(patient.barcode))
    ]
    clinical, faults = corrupt_clinical(clinical, cohort.faults, assigned, patients)
    return CohortTables(
        clinical,
        pd.DataFrame(slides, columns=pd.Index(["PATIENT", "FILENAME"])),
        _omics(patients, cohort, knobs, seed),
        pd.DataFrame([truth for _, truth in rows]),
        pd.DataFrame(faults, columns=pd.Index(["PATIENT", "FAULT"])),
    )


def write_cohort(tables: CohortTables, folder: Path) -> None:
    """Write a cohort's tables, each atomically."""
    write_text(folder / "clinical.csv", tables.clinical.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "slides.csv", tables.slides.to_csv(index=False, lineterminator="\n"))
    if len(tables.faults):
        write_text(folder / "truth" / "faults.csv", tables.faults.to_csv(index=False, lineterminator="\n"))
    parquets = {f"omics/{name}.parquet": table for name, table in tables.omics.items()}
    for name, table in {**parquets, "truth/latents.parquet": tables.truth}.items():
        with atomic_path(folder / name) as partial:
            table.to_parquet(partial, index=False)


def institution_table(preset: Preset) -> str:
    """Source-site codes and their institutions, in the form of TCGA's table (``;``-separated)."""
    lines = ["TSS Code;Source Site;Study Name;BCR"]
    for cohort in preset.cohorts:
        style = cohort.style
        for source in range(1, len(SOURCE_SHARES) + 1):
            name = _INSTITUTIONS[(source + style.number) % len(_INSTITUTIONS)]
            lines.append(f"{style.sources}{source};{name} (SYNTHETIC);{_STUDIES[style.cancer]};SYN")
    return "\n".join(lines) + "\n"


def _clinical_row(
    patient: Patient, cohort: CohortPlan, knobs: Knobs, seed: int
) -> tuple[dict[str, object], dict[str, object]]:
    """Complete clinical row and truth row of one patient."""
    style = cohort.style

    def rng(purpose: Purpose) -> np.random.Generator:
        return stream(seed, style.number, patient.number, purpose)

    labels = draw_labels(rng(Purpose.LABELS), patient.latents, style.cancer, knobs)
    survival = draw_survival(
        rng(Purpose.SURVIVAL), patient.latents, int(str(labels["AGE"])), style.cancer, knobs
    )
    row = {"PATIENT": patient.barcode, **labels, "OS_DAYS": survival.days, "OS_EVENT": int(survival.event)}
    morphology = draw_morphology(rng(Purpose.MORPHOLOGY), patient.latents, style.cancer, knobs)
    truth = {"PATIENT": patient.barcode, **asdict(patient.latents)}
    truth |= {"log_hazard": survival.log_hazard, "hazard_shared": survival.shared}
    # The true value of every label that the clinical table may lack.
    truth |= {f"label_{name}": value for name, value in row.items() if name != "PATIENT"}
    truth |= {f"morphology_{name}": value for name, value in asdict(morphology).items()}
    return row, truth


def _masked(row: dict[str, object], patient: Patient) -> dict[str, object]:
    """The row as text, with what the patient lacks left empty."""
    absent = set(patient.missing)
    if "OS" in absent:
        absent |= {"OS_DAYS", "OS_EVENT"}
    return {
        name: "" if name in absent else f"{value:.4f}" if isinstance(value, float) else str(value)
        for name, value in row.items()
    }


def _omics(patients: list[Patient], cohort: CohortPlan, knobs: Knobs, seed: int) -> "dict[str, pd.DataFrame]":
    profiles = draw_organ_profiles(seed, cohort.style.cancer, knobs)
    batch = draw_batch(stream(seed, cohort.style.number, WHOLE_COHORT, Purpose.BATCH))
    counts, arms, mutations = {}, {}, {}
    for patient in patients:
        rng = stream(seed, cohort.style.number, patient.number, Purpose.OMICS)
        seen = observe(rng, patient.latents, knobs.rho_omics)
        tissue = draw_tissue(rng, patient.latents, seen)
        counts[patient.barcode] = draw_counts(rng, profiles, tissue, batch)
        arms[patient.barcode] = draw_arms(rng, patient.latents, seen)
        mutations[patient.barcode] = draw_mutations(rng, patient.latents)
        if "rna" in patient.missing:
            del counts[patient.barcode]
    return {
        "rna": _wide(counts, PANEL),
        "cnv": _wide(arms, ARMS),
        "mutation": _wide(mutations, MUTATION_COLUMNS),
    }


def _wide(values: dict[str, np.ndarray], columns: tuple[str, ...]) -> "pd.DataFrame":
    """Patients x genes, the patient in the first column."""
    import pandas as pd

    matrix = np.array(list(values.values())).reshape(len(values), len(columns))
    table = pd.DataFrame(matrix, columns=pd.Index(columns))
    table.insert(0, "PATIENT", pd.Series(list(values), dtype=str))
    return table
