"""First open question of Path-GPTOmic: what do omics add to covariates in other cancers?

BRCA, KIRP, LUAD and LUSC beside GBMLGG and KIRC, on the published folds of PORPOISE. Covariates are age and sex, and
histology for GBMLGG or stage, M and N for the others (from ModalTune's lists). Omics are RNA, CNV and mutations by a
late fusion of ridges; with covariates the same fusion has one modality more. ``gain`` is Harrell's C of omics and
covariates less that of covariates alone: paired influence values, 1.5 V. The mean over cohorts has the standard error
of independent cohorts. ``image_gain`` of GBMLGG is what the published image risk adds to that.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.linear_baselines import COHORTS
from benchmarks.tcga_cases import read_patients
from benchmarks.tcga_scores import RowStore, Z
from benchmarks.tcga_survival import Cohort, parser_of, prepared, write_result

ROWS = {
    "clinical": "clinical",
    "rna": "ridge, rna",
    "omics": "late ridge, omics",
    "omics_clinical": "late ridge, omics + clinical",
}
IMAGE = "late ridge, image + omics + clinical"


def figures_of(cohort: Cohort) -> dict[str, Any]:
    """Concordances of a cohort, and what omics add."""
    scores, risks = cohort.scores, cohort.risks
    row: dict[str, Any] = {key: scores.mean(risks(name)).value for key, name in ROWS.items()}
    row["patients"] = len(cohort.patients.cases)
    row["events"] = int(sum(event for _, event in cohort.patients.labels.values()))
    row["gain"] = scores.difference(risks(ROWS["omics_clinical"]), risks("clinical"))
    row["gain_of_clinical"] = scores.difference(risks(ROWS["omics_clinical"]), risks(ROWS["omics"]))
    row["weights"] = {
        name: float(
            np.mean([fold.notes["weights"].get(name, 0.0) for fold in cohort.rows[ROWS["omics_clinical"]]])
        )
        for name in ("clinical", "rna", "cnv", "mutation")
    }
    for name, members in cohort.patients.groups.items():
        row[f"gain_within_{name}"] = scores.difference(
            risks(ROWS["omics_clinical"]), risks("clinical"), among=members
        )
    if IMAGE in cohort.rows:
        row["image_gain"] = scores.difference(risks(IMAGE), risks(ROWS["omics_clinical"]))
    return row


def mean_gain(rows: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    """Mean over cohorts, whose patients are others, with the interval of independent differences."""
    values = [row[key]["difference"] for row in rows.values()]
    errors = [(row[key]["high"] - row[key]["low"]) / (2 * Z) for row in rows.values()]
    mean, se = float(np.mean(values)), math.sqrt(sum(e**2 for e in errors)) / len(errors)
    return {"difference": mean, "low": mean - Z * se, "high": mean + Z * se}


def main() -> None:
    """All cohorts, or some."""
    parser = parser_of(__doc__ or "")
    parser.add_argument("--cohorts", nargs="*", choices=COHORTS, default=list(COHORTS), help="all six")
    asked = parser.parse_args()
    if not prepared(asked):
        return
    started, load = time.perf_counter(), os.getloadavg()[0]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in asked.cohorts:
            cohort = Cohort(
                read_patients(asked.data, name, Path(temporary)), RowStore(asked.rows), Path(temporary)
            )
            cohort.run([*ROWS.values(), *([IMAGE] if IMAGE in cohort.methods else [])])
            rows[name] = figures_of(cohort)
            print(f"{name}: {rows[name]}", flush=True)
    means = {
        "mean_gain": mean_gain(rows, "gain"),
        "mean_gain_of_clinical": mean_gain(rows, "gain_of_clinical"),
    }
    write_result("tcga_cohorts", {"cohorts": rows} | means, started, load)


if __name__ == "__main__":
    main()
