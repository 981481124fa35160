"""The step ``federate``: plans, external cohorts, complete folds are kept, other settings are refused."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.federation.privacy.accountant import together
from equipoise.platform.run import steps
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.schema import Study, smoke_overrides

STUDY = {
    "version": 1,
    "name": "sites",
    "cohorts": [
        {
            "name": name,
            "role": "external" if name == "E" else "develop",
            "clinical": f"{name}.csv",
            "site": "cohort",
        }
        for name in ("A", "B", "C", "E")
    ],
    "tasks": [
        {"name": "RESPONSE", "type": "binary", "column": "RESPONSE", "positive": "yes", "negative": "no"}
    ],
    "tables": {"clinical": [{"column": "AGE", "type": "number"}]},
    "model": {"kind": "clinical"},
    "training": {"epochs": 2, "lr": 0.1, "batch": 16},
    "splits": {"folds": 2},
    "evaluation": {"bootstrap": 50},
    "federation": {
        "rounds": 3,
        "local": {"optimizer": "sgd", "lr": 0.5, "batch": 8},
        "evaluation": {"plans": ["folds", "leave_one_site_out"]},
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cohorts of 40 patients whose age determines the response."""
    folder = tmp_path_factory.mktemp("step")
    rng = np.random.default_rng(0)
    for name in ("A", "B", "C", "E"):
        age = rng.integers(30, 90, 40)
        response = np.where(age + rng.normal(0, 5, 40) > 60, "yes", "no")
        table = pd.DataFrame({"PATIENT": [f"{name}{i}" for i in range(40)], "AGE": age, "RESPONSE": response})
        table.to_csv(folder / f"{name}.csv", index=False)
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return folder


def study_of(base: Path, **overrides: object) -> Study:
    return load_study(
        base / "study.yaml", {key.replace("__", "."): value for key, value in overrides.items()}
    )


def run_steps(study: Study, out: Path, *names: str) -> steps.RunResult:
    return steps.run_steps(study, RunFolder.open(study, str(out), "auto"), names)


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    run_steps(study_of(base), base / "run", "validate", "extract", "federate", "report")
    return base / "run"


def sites_of(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "federated" / "sites.csv", keep_default_na=False, na_values=[""])


def test_every_plan_and_method_has_a_value(run: Path) -> None:
    table = sites_of(run)
    means = table[table["scope"] == "mean"].set_index(["plan", "method"])["value"]
    methods = ("federated", "pooled", "local", "ensemble", "federated - pooled", "federated - local")
    assert set(means.index) == {("folds", method) for method in methods} | {
        ("leave_one_site_out", method) for method in methods if not method.endswith("local")
    } | {("leave_one_site_out", "local")}
    values = means[[" - " not in method for _, method in means.index]]
    assert (values.drop(("leave_one_site_out", "local")) > 0.8).all()
    assert math.isnan(values["leave_one_site_out", "local"])
    external = table[table["role"] == "external"]
    assert set(external["plan"]) == {"folds"}
    assert set(external["method"]) == {"federated", "pooled", "local", "ensemble"}


def test_a_linear_model_tells_its_distance_from_the_optimum(run: Path) -> None:
    rows = json.loads((run / "federated" / "setting.json").read_text())["optimum"]
    facts = json.loads((run / "federated" / "folds" / "0-0" / "facts.json").read_text())
    assert {row["plan"] for row in rows} == {"folds", "leave_one_site_out"}
    assert {row["task"] for row in rows} == {"RESPONSE"}
    assert all(row["objective"] > 0 for row in rows)  # three rounds do not get there
    assert facts["optimum"]["RESPONSE"] == {
        key: rows[0][key] for key in ("penalty", "objective", "train", "val")
    }
    assert "Distance from the optimum" in (run / "report.html").read_text(encoding="utf-8")


def test_left_out_sites_are_evaluated_by_others(run: Path) -> None:
    for index, site in enumerate("ABC"):
        facts = json.loads(
            (run / "federated" / "leave_one_site_out" / f"0-{index}" / "facts.json").read_text()
        )
        assert facts["left_out"] == site
        assert set(facts["clients"]) == set("ABC") - {site}
    table = sites_of(run)
    away = table.query("plan == 'leave_one_site_out' and method == 'local' and scope == 'client'")
    assert set(away["note"]) == {"the site took no part in the training"}
    assert away["value"].isna().all()


def test_what_is_done_is_kept_and_what_differs_is_refused(base: Path, run: Path) -> None:
    facts = run / "federated" / "folds" / "0-0" / "facts.json"
    before = facts.stat().st_mtime_ns
    run_steps(study_of(base), run, "federate")
    assert facts.stat().st_mtime_ns == before
    with pytest.raises(StudyError, match="federation.strategy: 'fedavg' → 'fedprox'"):
        run_steps(study_of(base, federation__strategy="fedprox"), run, "federate")


def test_a_damaged_federation_goes_on_from_its_last_round(
    base: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [
        run / "federated" / name
        for name in ("folds/0-0/facts.json", "leave_one_site_out/0-1/predictions.parquet")
    ]
    before = [(file.parent / "predictions.parquet").read_bytes() for file in files]
    for file in files:
        file.write_bytes(file.read_bytes()[:60])
    with caplog.at_level("WARNING", "equipoise"):
        run_steps(study_of(base), run, "federate")
    warned = [line for line in caplog.messages if "goes on from its last round: " in line]
    assert ["folds 0-0" in warned[0], "leave_one_site_out 0-1" in warned[1]] == [True, True]
    assert [(file.parent / "predictions.parquet").read_bytes() for file in files] == before


def test_a_run_without_the_section_has_nothing_to_do(base: Path, tmp_path: Path) -> None:
    study = study_of(base, federation=None)
    run_steps(study, tmp_path / "run", "validate", "extract", "federate", "report")
    assert not (tmp_path / "run" / "federated").exists()
    folder = RunFolder(tmp_path / "run")
    assert "no federation section" in folder.status()["steps"]["federate"]["skipped"]
    assert "federate" not in folder.to_do()
    assert "Federation" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_patient_of_two_sides_is_named(base: Path, tmp_path: Path) -> None:
    table = pd.read_csv(base / "E.csv")
    table.loc[0, "PATIENT"] = "a3"
    table.to_csv(base / "overlap.csv", index=False)
    study = study_of(base, cohorts__3__clinical="overlap.csv")
    with pytest.raises(DataError, match=r"client A and external cohort E share 1: a3"):
        run_steps(study, tmp_path / "run", "validate", "extract", "federate")


def test_personal_parts_predict_for_their_own_site(base: Path, tmp_path: Path) -> None:
    changes = {"federation__strategy": "fedper", "federation__strategy_params": {"personal": ["re:bias$"]}}
    changes |= {"federation__evaluation": {"folds": 1}}
    run_steps(study_of(base, **changes), tmp_path / "run", "validate", "extract", "federate")
    rounds = (tmp_path / "run" / "federated" / "rounds.jsonl").read_text().splitlines()
    assert len(rounds) == 3
    assert "val/RESPONSE" not in rounds[0]  # no weights that all could be asked about


def test_workers_of_one_session_give_the_same_table(
    base: Path, run: Path, ray_session: None, tmp_path: Path
) -> None:
    changes = {"federation__backend": "ray", "federation__workers": 1, "federation__worker_cpus": 0.5}
    run_steps(
        study_of(base, federation__evaluation={"folds": 1}, **changes),
        tmp_path / "run",
        "validate",
        "extract",
        "federate",
    )
    ours, theirs = (
        pd.read_parquet(folder / "federated" / "folds" / "0-0" / "predictions.parquet")
        for folder in (tmp_path / "run", run)
    )
    pd.testing.assert_frame_equal(ours, theirs)
    facts = json.loads((tmp_path / "run" / "federated" / "folds" / "0-0" / "facts.json").read_text())
    assert facts["backend"] == "ray"


def test_smoke_keeps_the_scheme(base: Path) -> None:
    study = study_of(base, federation__sites="tss")
    smoke = load_study(base / "study.yaml", {"federation.sites": "tss"} | smoke_overrides(study))
    assert smoke.federation is not None
    assert (smoke.federation.sites.scheme, smoke.federation.sites.min_patients) == ("tss", 1)
    assert smoke.federation.rounds == 2


def test_candidates_are_chosen_by_the_sites_validation_patients(base: Path, tmp_path: Path) -> None:
    """A step size of nothing loses; the baselines train with the settings that were chosen with the other one."""
    candidates = [
        {"local": {"lr": 1e-6}, "training": {"lr": 0.07}},
        {"strategy": "ditto", "training": {"lr": 0.06}},
    ]
    evaluation = {"folds": 1, "clean_costs": False, "linear_baselines": ["ridge"]}
    changes = {"federation__candidates": candidates, "federation__evaluation": evaluation}
    changes |= {"splits__inner_val": 0.3}  # six patients at each site may be asked about
    run_steps(study_of(base, **changes), tmp_path / "run", "validate", "extract", "federate", "report")
    federated = tmp_path / "run" / "federated"
    facts = json.loads((federated / "folds" / "0-0" / "facts.json").read_text())
    assert facts["chosen"] == 1
    assert [row["settings"] for row in facts["candidates"]] == candidates
    assert facts["candidates"][1]["monitor"] < facts["candidates"][0]["monitor"]
    assert facts["traffic"]["A"]["accepted"] == 6, "both candidates, three rounds each"
    pooled = json.loads((federated / "folds" / "pooled" / "0-0" / "config.json").read_text())
    assert pooled["made_by"]["training"]["lr"] == 0.06
    table = sites_of(tmp_path / "run")
    values = table[(table["scope"] == "mean") & table["task"].eq("RESPONSE")].set_index("method")["value"]
    assert (values[["federated", "pooled ridge", "local ridge"]] > 0.8).all()
    assert "pooled ridge" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_private_federation_says_what_was_spent_in_all_folds(base: Path, tmp_path: Path) -> None:
    """Both folds train on the same patients: their budgets add up, and the report says so."""
    privacy = {
        "record_level": {"clip": 1.0, "noise": 1.0, "delta": 0.01},
        "statistics": {"noise": 3.0, "bounds": {"clinical.AGE": [20, 100]}},
    }
    study = study_of(
        base, federation__privacy=privacy, federation__rounds=2, federation__evaluation={"plans": ["folds"]}
    )
    run_steps(study, tmp_path / "run", "validate", "extract", "federate", "report")
    folder = tmp_path / "run" / "federated"
    facts = [json.loads((folder / "folds" / name / "facts.json").read_text()) for name in ("0-0", "0-1")]
    assert not [key for one in facts for row in one["history"] for key in row if "/" in key]
    assert all(one["clean_costs"] == [] for one in facts)
    alone = [together([one["privacy"]])["patients"] for one in facts]
    both = together([one["privacy"] for one in facts])["patients"]
    assert max(alone) < both < sum(alone) + 1e-9
    for one in facts:
        for account in one["privacy"]["patients"].values():
            assert [1.0, 3.0, 2] in account["executed"]  # the sums, and the counts
    statement = "\n".join(json.loads((folder / "setting.json").read_text())["privacy_statement"])
    assert f"epsilon {max(alone):.3g} at delta 0.01" in statement
    assert f"{both:.3g} for all 2 federations" in statement
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Not covered by the guarantee" in page
    assert f"{both:.3g} for all 2 federations" in page
