"""The example of colorectal cohorts with real labels and institutions on SYNTHETIC features runs as it is written."""

import importlib.util
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def run(root: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the step, on one patient out of three, with the data folder where the example expects it."""
    from equipoise.platform.run import steps
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study

    top = tmp_path_factory.mktemp("crc")
    folder = top / "checkout" / "examples"
    folder.mkdir(parents=True)
    (top / "shared").mkdir()
    (top / "shared" / "data").symlink_to(shared_data)
    shutil.copy(root / "examples" / "federated_crc.yaml", folder)
    spec = importlib.util.spec_from_file_location("federated_crc", root / "examples" / "federated_crc.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    written = example.write_features(folder / "federated_crc.yaml", folder / "federated_crc", every=3)
    assert written == {"TCGA-CRC": 153, "CPTAC-COAD": 35}
    study = load_study(folder / "federated_crc.yaml", {"training.epochs": 3, "evaluation.bootstrap": 50})
    wanted = ["validate", "extract", "federate", "report"]
    steps.run_steps(study, RunFolder.open(study, str(top / "run"), "auto"), wanted)
    return top / "run"


def test_real_institutions_and_a_cohort_without_sites_train_together(run: Path) -> None:
    setting = json.loads((run / "federated" / "setting.json").read_text())
    clients = {client["name"]: client for client in setting["clients"]}
    assert clients["CPTAC-COAD"]["patients"] == 35
    assert "LF: no label" in clients["CPTAC-COAD"]["flags"]
    assert {"Indivumed", "other"} <= set(clients)
    assert sum(client["patients"] for client in clients.values()) == 188


def test_every_client_has_a_row_or_a_reason(run: Path) -> None:
    sites = pd.read_csv(run / "federated" / "sites.csv", keep_default_na=False, na_values=[""])
    of_clients = sites[(sites["scope"] == "client") & (sites["method"] == "federated")]
    assert set(of_clients["task"]) == {"MSI", "LF"}
    assert of_clients.loc[of_clients["value"].isna(), "note"].notna().all()
    cptac = of_clients[(of_clients["client"] == "CPTAC-COAD") & (of_clients["task"] == "LF")].iloc[0]
    assert cptac["note"] == "no labelled test patient"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "SYNTHETIC" in page
    assert "Paired differences" in page
