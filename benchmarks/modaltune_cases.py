"""ModalTune's cases of four cancers joined with PORPOISE's RNA: the tables of a study, and the published split.

ModalTune's lists (train, val, test) say case, class, age, follow-up and whether the patient died. Where they have a
follow-up of 0 months, PORPOISE's is taken if it knows the case. RNA are the 1,540 genes that PORPOISE's six tables
share. **Its z-scores were made per study** (GBM apart from LGG, LUAD from LUSC, KIRC from KIRP), so that they carry the
class of these three cancers; only BRCA is one study.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from equipoise.datasets.cohorts.cases import Case, CaseReader
from equipoise.datasets.cohorts.splits import Fold
from equipoise.platform.run.context import read_cohorts
from equipoise.platform.run.loading import load_study

#: Cancer → its studies in PORPOISE and the names of ModalTune's classes 0, 1, …
CANCERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "BRCA": (("BRCA",), ("IDC", "ILC")),
    "GBMLGG": (("GBMLGG",), ("GBM", "LGG")),
    "NSCLC": (("LUAD", "LUSC"), ("LUAD", "LUSC")),
    "RCC": (("KIRC", "KIRP"), ("KIRP", "KIRC", "KICH")),
}
#: Cancers whose class is read off the preprocessing of this RNA.
ARTEFACTS = ("GBMLGG", "NSCLC", "RCC")
PARTS = ("train", "val", "test")
OTHER = "other"
SUFFIX = "_rnaseq"


@dataclass(frozen=True)
class Joined:
    """Cases of the four cancers.

    Attributes
    ----------
    cases
        Patient → case, with age, and RNA where PORPOISE has it.
    tasks
        Name → task: ``subtype`` and ``os`` of all cancers together (all classes; no strata), ``os_strata`` (strata by
        cancer), and ``subtype_<cancer>``, ``os_<cancer>`` of each.
    parts
        Cancer → part → patients, in the order of the lists.
    classes
        Patient → name of the class, ``other`` for rare ones.
    """

    cases: dict[str, Case]
    tasks: dict[str, Any]
    parts: dict[str, dict[str, tuple[str, ...]]]
    classes: dict[str, str]

    def with_rna(self, patients: Iterable[str]) -> tuple[str, ...]:
        """Those of the patients that have RNA."""
        return tuple(p for p in patients if "rna" in self.cases[p].omics)

    def without_rna(self, patients: Iterable[str]) -> tuple[str, ...]:
        """Those that have none."""
        return tuple(p for p in patients if "rna" not in self.cases[p].omics)

    def part(self, cancers: Iterable[str], name: str) -> tuple[str, ...]:
        """Patients of a part of the split, of one or several cancers."""
        return tuple(p for cancer in cancers for p in self.parts[cancer][name])

    def fold(self, cancers: Iterable[str], *, rna_only: bool = True, index: int = 0) -> Fold:
        """The published split, by default of the cases that have RNA."""
        cancers = tuple(cancers)
        parts = [self.part(cancers, name) for name in PARTS]
        train, val, test = (self.with_rna(part) if rna_only else part for part in parts)
        return Fold(0, index, train, val, test)

    def labels(self, cancer: str) -> dict[str, tuple[float, float]]:
        """Patient → days and event of the overall survival, of those who have one."""
        of = {p: self.cases[p].targets[f"os_{cancer}"] for part in PARTS for p in self.parts[cancer][part]}
        return {p: label for p, label in of.items() if not np.isnan(label[0])}  # type: ignore[index, misc]


def read_joined(data: Path, folder: Path) -> Joined:
    """Write the joined tables to a folder and read them as a study does."""
    lists = {cancer: listed_cases(data, cancer) for cancer in CANCERS}
    rna = common_rna(data)
    known = pd.concat([studies for studies, _ in rna.values()])["survival_months"]
    for cancer, (studies, _) in CANCERS.items():
        table = lists[cancer]
        unknown = table["months"] <= 0
        # 0 stays where PORPOISE does not know the case either; the product then leaves the label out.
        table.loc[unknown, "months"] = table.index[unknown].map(known).to_numpy(float)
        table["months"] = table["months"].fillna(0.0)
        table["histology"] = table["class"]
        for other in CANCERS:
            for column in ("class", "months", "died"):
                table[f"{column}_{other}"] = table[column] if other == cancer else ""
        table.drop(columns="part").to_csv(folder / f"{cancer}.csv", index_label="PATIENT")
        genes = pd.concat([rna[study][1] for study in studies])
        chosen = genes.loc[genes.index.isin(table.index)].rename_axis("PATIENT")
        chosen.reset_index().to_parquet(folder / f"{cancer}-rna.parquet", index=False)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study_of(), sort_keys=False))
    cohorts = read_cohorts(load_study(file))
    reader = CaseReader(cohorts, None, role="develop")
    cases = {patient: reader[patient] for patient in cohorts.patients["patient"]}
    parts = {
        cancer: {part: tuple(p for p in table.index[table["part"] == part] if p in cases) for part in PARTS}
        for cancer, table in lists.items()
    }
    classes = {p: name for table in lists.values() for p, name in table["class"].items()}
    return Joined(cases, {task.name: task for task in cohorts.tasks}, parts, classes)


def listed_cases(data: Path, cancer: str) -> pd.DataFrame:
    """ModalTune's cases of a cancer: part, class, age, months and whether the patient died, by case."""
    rows = []
    for part in PARTS:
        with gzip.open(data / "tcga" / "modaltune" / f"{part}_{cancer.lower()}_cls_feat.json.gz") as file:
            rows += [row | {"part": part} for row in json.load(file)["data"]]
    table = pd.DataFrame(rows).drop_duplicates("case_submitter_id").set_index("case_submitter_id")
    names = dict(enumerate(CANCERS[cancer][1]))
    return pd.DataFrame(
        {
            "part": table["part"],
            "class": [names.get(code, OTHER) for code in table["primary_class"]],
            "age": pd.to_numeric(table["age_at_index"], errors="coerce"),
            "months": table["durations"].astype(float),
            "died": table["vital_status"].astype(int),
        }
    )


def common_rna(data: Path) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Study → follow-up by case, and RNA by case over the genes that all six studies have."""
    files = {
        study: data / "tcga" / "porpoise" / f"tcga_{study.lower()}_all_clean.csv.zip"
        for studies, _ in CANCERS.values()
        for study in studies
    }
    genes = [{c for c in pd.read_csv(file, nrows=0).columns if c.endswith(SUFFIX)} for file in files.values()]
    common = sorted(set.intersection(*genes))
    found = {}
    for study, file in files.items():
        table = pd.read_csv(file, usecols=["case_id", "survival_months", *common])
        table = table.drop_duplicates("case_id").set_index("case_id")
        rna = table[common].dropna(how="all").rename(columns=lambda name: name.removesuffix(SUFFIX))
        found[study] = table[["survival_months"]], rna
    return found


def study_of() -> dict[str, Any]:
    """The study: a cohort per cancer, the tasks of all cancers together and of each."""

    def subtype(name: str, column: str, classes: Iterable[str]) -> dict[str, Any]:
        task = {"name": name, "type": "multiclass", "column": column, "classes": list(classes)}
        return task | {"exclude": [OTHER]}

    def survival(name: str, suffix: str, strata: str) -> dict[str, Any]:
        event = {"column": f"died{suffix}", "event_value": "1", "censored_value": "0"}
        time = {"column": f"months{suffix}", "unit": "months"}
        return {"name": name, "type": "survival", "time": time, "event": event, "strata": strata}

    every = [name for _, names in CANCERS.values() for name in names]
    tasks = [
        subtype("subtype", "class", every),
        survival("os", "", "none"),
        survival("os_strata", "", "cohort"),
    ]
    for cancer, (_, names) in CANCERS.items():
        tasks += [subtype(f"subtype_{cancer}", f"class_{cancer}", names)]
        tasks += [survival(f"os_{cancer}", f"_{cancer}", "cohort")]
    return {
        "version": 1,
        "name": "modaltune-tcga",
        "cohorts": [
            {
                "name": cancer,
                "role": "develop",
                "clinical": f"{cancer}.csv",
                "omics": {"rna": {"path": f"{cancer}-rna.parquet", "kind": "zscore"}},
            }
            for cancer in CANCERS
        ],
        "tasks": tasks,
        "tables": {
            "clinical": [{"column": "age", "type": "number"}, {"column": "histology", "type": "category"}]
        },
        "model": {"kind": "modaltune", "modalities": ["clinical", "rna"]},
    }
