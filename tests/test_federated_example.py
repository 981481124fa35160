"""The federated example runs unchanged under ``equipoise federate --smoke``, on smaller cohorts of the same design."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.evaluation.predictions import read_predictions

pytestmark = pytest.mark.slow

COHORTS = {"syn-crc-a", "syn-crc-b", "syn-luad-a", "syn-luad-b", "syn-ucec-a"}


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the command, on bench cohorts of 40 patients per site instead of 400."""
    from equipoise.datasets.synthetic import generate
    from equipoise.datasets.synthetic.catalogue import resolve_preset
    from equipoise.jobs.federate import federate
    from equipoise.jobs.options import LogFormat, Resume

    folder = tmp_path_factory.mktemp("federated")
    shutil.copy(root / "examples" / "federated.yaml", folder)
    whole = resolve_preset("bench")
    small = whole.model_copy(
        update={"cohorts": tuple(c.model_copy(update={"patients": 40}) for c in whole.cohorts)}
    )
    for job in generate.plan(small, 1):
        generate.write_patient(job, folder / "bench")
    generate.write_tables(small, 1, folder / "bench")
    with pytest.raises(SystemExit) as ended:
        federate(
            config=str(folder / "federated.yaml"), set=None, out=str(folder / "run"), resume=Resume.auto,
            dry_run=False, smoke=True, seed=None, address=None, max_cpus=None, max_gpus=None,
            log_format=LogFormat.plain, verbose=False, rounds=None, strategy=None,
        )  # fmt: skip
    assert not ended.value.code
    return folder / "run"


def test_every_method_judges_the_same_patients(run: Path) -> None:
    methods = ("federated", "pooled", "local", "ensemble")
    tables = {
        m: read_predictions(run / "federated" / "predictions" / "folds" / f"{m}.parquet") for m in methods
    }
    tested = {m: t[(t["role"] == "test") & (t["task"] == "LF")] for m, t in tables.items()}
    for method in methods[1:]:
        assert set(tested[method]["patient"]) <= set(tested["federated"]["patient"])
    assert set(tested["pooled"]["patient"]) == set(tested["federated"]["patient"])
    assert set(tested["local"]["cohort"]) == COHORTS


def test_sites_rounds_and_traffic(run: Path) -> None:
    sites = pd.read_csv(run / "federated" / "sites.csv", keep_default_na=False, na_values=[""])
    assert set(sites["method"]) == {
        *("federated", "pooled", "local", "ensemble"), *("federated - pooled", "federated - local"),
    }  # fmt: skip
    assert set(sites.query("scope == 'client' and role == 'test'")["client"]) == COHORTS
    rounds = [json.loads(line) for line in (run / "federated" / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rounds] == [1, 2]
    assert all(row["accepted"] == 5 and row["val/LF"] > 0 for row in rounds)
    traffic = pd.read_csv(run / "federated" / "traffic.csv")
    assert set(traffic["client"]) == COHORTS
    assert (traffic["bytes"] > 0).all()
    assert (traffic["accepted"] == 2).all()


def test_tasks_and_modalities_are_missing_where_the_study_says_so(run: Path) -> None:
    metadata = json.loads((run / "federated" / "folds" / "0-0" / "facts.json").read_text())
    counts = {name: client["counts"] for name, client in metadata["clients"].items()}
    assert {name for name, client in counts.items() if client["task:MSI"]} == {
        "syn-crc-a",
        "syn-crc-b",
        "syn-ucec-a",
    }
    assert {name for name, client in counts.items() if client["task:HRD"]} == {"syn-luad-a", "syn-luad-b"}
    assert {name for name, client in counts.items() if not client["modality:rna"]} == {"syn-luad-b"}
    costs = {row["server_aggregation"]: row for row in metadata["clean_costs"]}
    assert costs["mean"]["distance"] == pytest.approx(0, abs=1e-6)
    assert costs["balanced"]["distance"] > 0


def test_the_report_has_the_section(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "SYNTHETIC" in page
    assert "could not be created" not in page
    for text in ("Cost of server aggregations without an attack", "worst site", "No differential privacy"):
        assert text in page
