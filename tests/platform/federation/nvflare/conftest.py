"""Three hospitals with tables on disk, each with its own file of data, and the study of who leads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

SITES = ("site-1", "site-2", "site-3")
STUDY: dict[str, Any] = {
    "version": 1,
    "name": "toy",
    "seed": 5,
    "tasks": [
        {
            "name": "MSI",
            "type": "binary",
            "column": "MSI",
            "positive": "high",
            "negative": ["low"],
            "main": True,
        },
        {"name": "LF", "type": "regression", "column": "LF"},
    ],
    "model": {"kind": "omics", "dim": 4, "layers": 1},
    "training": {"device": "cpu", "epochs": 2},
    "splits": {"scheme": "kfold", "folds": 4, "inner_val": 0.3},
    "federation": {"rounds": 2, "min_n": 2, "local": {"optimizer": "sgd", "lr": 0.05, "batch": 8}},
}


def write_hospital(folder: Path, number: int, patients: int) -> Path:
    """Tables of a hospital and its file; keys of patients begin with SECRET."""
    rng = np.random.default_rng(number)
    folder.mkdir(parents=True)
    names = [f"SECRET-{number}-{i:02d}" for i in range(patients)]
    genes = rng.normal(size=(patients, 5)) + 0.3 * number
    pd.DataFrame(
        {"PATIENT": names, "MSI": np.where(np.arange(patients) % 2, "high", "low"), "LF": genes[:, 0] * 2 + 1}
    ).to_csv(folder / "clinical.csv", index=False)
    table = pd.DataFrame(genes, columns=[f"G{k}" for k in range(5)])
    table.insert(0, "PATIENT", names)
    table.to_csv(folder / "rna.csv", index=False)
    cohort = {"name": f"H{number}", "role": "develop", "clinical": "clinical.csv"}
    file = folder / "equipoise_site.yaml"
    file.write_text(
        yaml.safe_dump({"cohorts": [cohort | {"omics": {"rna": {"path": "rna.csv", "kind": "zscore"}}}]})
    )
    return file


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``<site>.yaml`` for every site of one machine, and ``study.yaml`` beside it."""
    root = tmp_path_factory.mktemp("hospitals")
    for number, site in enumerate(SITES):
        data = yaml.safe_load(write_hospital(root / site, number, 20 + 3 * number).read_text())
        cohort = data["cohorts"][0]
        cohort["clinical"] = f"{site}/clinical.csv"
        cohort["omics"] = {"rna": {"path": f"{site}/rna.csv", "kind": "zscore"}}
        (root / f"{site}.yaml").write_text(yaml.safe_dump(data | {"folder": f"{site}/federation"}))
    cohorts = [yaml.safe_load((root / f"{site}.yaml").read_text())["cohorts"][0] for site in SITES]
    (root / "study.yaml").write_text(yaml.safe_dump(STUDY | {"cohorts": cohorts}))
    return root
