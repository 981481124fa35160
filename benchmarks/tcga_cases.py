"""Real TCGA patients for the benchmarks of survival: PORPOISE's tables, stages, published image risks.

A published risk of an image model becomes a bag with one tile of width 1, which a model reads like any slide. The
risk of every patient is out of fold, but the model that gave it was trained on the other folds: among its training
patients are those of the fold that is tested here. Weights that are fitted on such risks leak a little; sums with equal
weights do not.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.linear_baselines import cohorts_of, covariates_of, folds_of, glioma_classes
from equipoise.datasets.cohorts.cases import Case, CaseReader
from equipoise.datasets.cohorts.splits import Fold

#: Of MCAT's repository: attention over tiles, no omics.
IMAGE_MODEL = "AMILsm_nll_surv_a0.0_5foldcv_gc32_sig"
#: Cohort → name of ModalTune's lists of cases that have its stages; gliomas have none.
STAGED = {"KIRC": "rcc", "KIRP": "rcc", "BRCA": "brca", "LUAD": "nsclc", "LUSC": "nsclc"}
#: Column of those lists → covariate, and the pattern whose group is its number.
STAGE = {
    "ajcc_pathologic_stage": ("stage", r"Stage (IV|I{1,3})"),
    "ajcc_pathologic_m": ("metastasis", r"c?M([01])"),
    "ajcc_pathologic_n": ("nodes", r"N([0-3])"),
}
NUMBERS = {"I": 1, "II": 2, "III": 3, "IV": 4}
#: Tables of a cohort, beside tiles.
OMICS = ("rna", "cnv", "mutation")


@dataclass(frozen=True)
class Patients:
    """The patients of a cohort, its task and published folds.

    Attributes
    ----------
    name
        Of the cohort.
    cases
        Patient → case, with all tables.
    task
        Overall survival.
    folds
        The five published ones; a tenth of the training patients is the inner validation part.
    covariates
        As a study names them; the first is age.
    groups
        Name of a class → patients, where classes predict survival.
    """

    name: str
    cases: dict[str, Case]
    task: Any
    folds: list[Fold]
    covariates: list[dict[str, Any]]
    groups: dict[str, set[str]]

    def only(self, modalities: Iterable[str]) -> dict[str, Case]:
        """The same patients with these modalities alone: tables, and ``wsi`` for tiles."""
        kept = set(modalities)
        return {patient: hidden(case, kept) for patient, case in self.cases.items()}

    @property
    def labels(self) -> dict[str, tuple[float, float]]:
        """Patient → days and event."""
        return {patient: case.targets[self.task.name] for patient, case in self.cases.items()}  # type: ignore[misc]


def hidden(case: Case, kept: set[str]) -> Case:
    """A case without the modalities that are not kept."""
    case = dataclasses.replace(case, omics={m: v for m, v in case.omics.items() if m in kept})
    return case if "wsi" in kept else with_risk(case, None)


def with_risk(case: Case, risk: float | None) -> Case:
    """A case whose only tile is a number, or that has no tile."""
    bag = np.empty((0, 0), np.float32) if risk is None else np.array([[risk]], np.float32)
    count = len(bag)
    return dataclasses.replace(
        case, bag=bag, coords=np.zeros((count, 2), np.int32), slides=("risk",) * count, tiles=(1,) * count
    )


def read_patients(data: Path, name: str, folder: Path) -> Patients:
    """A cohort of PORPOISE with everything that is known of it."""
    covariates: list[dict[str, Any]] = covariates_of([name])
    clinical = None
    if name in STAGED:
        clinical = _with_stage(data, name, folder)
        covariates = covariates + [{"column": name, "type": "number"} for name, _ in STAGE.values()]
    cohorts = cohorts_of(data, [name], folder, covariates=covariates, clinical=clinical)
    reader = CaseReader(cohorts, None, role="develop")
    cases = {patient: reader[patient] for patient in cohorts.patients["patient"]}
    risks = image_risks(data) if name == "GBMLGG" else {}
    cases = {p: with_risk(case, risks[p]) if p in risks else case for p, case in cases.items()}
    groups = glioma_classes(data) if name == "GBMLGG" else {}
    return Patients(name, cases, cohorts.tasks[0], folds_of(data, name, list(cases)), covariates, groups)


def image_risks(data: Path) -> dict[str, float]:
    """Patient of GBMLGG → out-of-fold risk of an image model, higher is worse."""
    table = pd.read_csv(data / "tcga" / "mcat" / "gbmlgg_published_val_predictions.csv.gz")
    rows = table[table["model"] == IMAGE_MODEL]
    return dict(zip(rows["slide_or_case"], rows["risk"].astype(float), strict=True))


def hypal_risks(data: Path, name: str) -> dict[str, float]:
    """Patient → held-out risk of HyPAL-Surv (image and RNA, its own splits); empty for a cohort it has not."""
    file = data / "tcga" / "hypal" / f"hypal_{name.lower()}.csv"
    if not file.exists():
        return {}
    table = pd.read_csv(file)
    return dict(zip(table["patient_id"], table["mean_hazard"].astype(float), strict=True))


def stage_number(text: Any, pattern: str) -> float:
    """1 to 4 for a stage, the digit for M and N; NaN for what is unknown (MX, NX, Stage X) or missing.

    >>> [stage_number(text, STAGE["ajcc_pathologic_stage"][1]) for text in ("Stage IIIA", "Stage IV", "Stage X")]
    [3.0, 4.0, nan]
    """
    found = re.match(pattern, text) if isinstance(text, str) else None
    return float(NUMBERS.get(found[1], found[1])) if found else float("nan")


def _with_stage(data: Path, name: str, folder: Path) -> Path:
    """PORPOISE's clinical columns of a cohort with stage, M and N from ModalTune's lists of cases."""
    known: dict[str, dict[str, Any]] = {}
    for part in ("train", "val", "test"):
        with gzip.open(data / "tcga" / "modaltune" / f"{part}_{STAGED[name]}_cls_feat.json.gz") as file:
            rows: Sequence[dict[str, Any]] = json.load(file)["data"]
        for row in rows:
            known.setdefault(row["case_submitter_id"], row)
    table = pd.read_csv(data / "tcga" / "porpoise" / f"tcga_{name.lower()}_all_clean.csv.zip")
    table = table[[c for c in table if not c.endswith(("_rnaseq", "_cnv", "_mut"))]]
    for column, (covariate, pattern) in STAGE.items():
        table[covariate] = [stage_number(known.get(p, {}).get(column), pattern) for p in table["case_id"]]
    target = folder / f"{name.lower()}-with-stage.csv"
    table.to_csv(target, index=False)
    return target
