"""Lines of the verdict about a federation and a search, from planted results; baselines beside headlines."""

import json
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.report.baseline_rows import baseline_note
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.sections.federation import federation_sentence
from equipoise.platform.report.sections.search import search_sentence


def federated(folder: Path, difference: tuple[float, float, float]) -> RunFiles:
    home = folder / "federated"
    home.mkdir()
    setting = {"clients": [{"name": "A"}, {"name": "B"}], "federation": {"strategy": "fedprox"}}
    (home / "setting.json").write_text(json.dumps(setting))
    same = {"plan": "folds", "role": "test", "scope": "mean", "client": "all", "task": "MSI", "kind": "binary",
            "metric": "auroc", "n": 60, "n_pos": 20, "note": ""}  # fmt: skip
    value, low, high = difference
    rows = [
        same | {"method": "federated", "value": 0.71, "low": 0.6, "high": 0.8},
        same | {"method": "pooled", "value": 0.74, "low": 0.64, "high": 0.82},
        same | {"method": "local", "value": 0.62, "low": 0.5, "high": 0.72},
        same | {"method": "federated - pooled", "value": -0.03, "low": -0.08, "high": 0.02},
        same | {"method": "federated - local", "value": value, "low": low, "high": high},
    ]
    pd.DataFrame(rows).to_csv(home / "sites.csv", index=False)
    run = RunFiles(folder)
    run.__dict__["tasks"] = [Task("MSI", "binary", True)]
    return run


def test_a_federation_is_one_line_with_its_references(tmp_path: Path) -> None:
    assert federation_sentence(federated(tmp_path, (0.09, 0.03, 0.15))) == (
        "Federated across 2 sites (fedprox), AUROC for MSI (mean of sites) is 0.71 (0.60–0.80), against 0.74 with "
        "pooled training and 0.62 with models of the sites alone; it is better than local training by 0.09 (0.03–0.15)."
    )


def test_differences_that_include_zero_tell_nothing(tmp_path: Path) -> None:
    line = federation_sentence(federated(tmp_path, (0.09, -0.03, 0.2)))
    assert line.endswith("; the paired differences do not tell them apart.")


def test_without_a_federation_there_is_no_line(tmp_path: Path) -> None:
    assert federation_sentence(RunFiles(tmp_path)) == ""


def searched(folder: Path, chosen: str, differences: list[dict] | None) -> RunFiles:
    from equipoise.platform.search.trial_records import FIXED_COLUMNS

    home = folder / "search"
    home.mkdir()
    rows = [
        dict.fromkeys(FIXED_COLUMNS, "")
        | {"index": k, "name": name, "status": "ok", "objective": 0.7 + k / 10}
        for k, name in enumerate(("000-equal", "001-pcgrad"))
    ]
    pd.DataFrame(rows).to_parquet(home / "trials.parquet")
    (home / "best.json").write_text(json.dumps({"trial": chosen}))
    if differences is not None:
        (home / "test.json").write_text(json.dumps({"differences": differences}))
    run = RunFiles(folder)
    run.__dict__["tasks"] = [Task("MSI", "binary", True)]
    return run


def test_a_search_says_what_it_chose_and_that_this_was_not_tested(tmp_path: Path) -> None:
    assert search_sentence(searched(tmp_path, "001-pcgrad", None)) == (
        "A search of 2 trials chose 001-pcgrad; the results above are those of the study as written. The choice has "
        "not been tested on patients that no trial saw."
    )


@pytest.mark.parametrize(
    ("bounds", "said"), [((-0.05, 0.09), "not told apart"), ((0.01, 0.09), "better"), ((-0.9, -0.1), "worse")]
)
def test_a_tested_search_says_what_it_gained(tmp_path: Path, bounds: tuple[float, float], said: str) -> None:
    d = {
        "cohort": "hold-out",
        "task": "MSI",
        "metric": "auroc",
        "difference": 0.02,
        "low": bounds[0],
        "high": bounds[1],
    }
    line = search_sentence(searched(tmp_path, "001-pcgrad", [d, d | {"task": "OS"}]))
    assert f"for MSI: {said} on hold-out (AUROC +0.02, " in line
    assert "OS" not in line


def test_a_search_that_changes_nothing_says_so(tmp_path: Path) -> None:
    assert (
        search_sentence(searched(tmp_path, "000-equal", None))
        == "A search of 2 trials chose the study as written."
    )
    assert search_sentence(RunFiles(tmp_path / "none")) == ""


def test_a_baseline_stands_with_its_lead() -> None:
    row = {"predictor": "age", "value": 0.62, "lead": 0.2, "lead_low": 0.05, "lead_high": 0.34}
    assert baseline_note(row) == "age 0.62; lead 0.20 (0.05–0.34)"
    assert baseline_note(row | {"lead": float("nan")}) == "age 0.62"
    assert baseline_note(None) == ""


def test_one_reason_of_all_sites_is_said_once() -> None:
    from equipoise.platform.report.sections.federation import _one_reason

    reason = "the site took no part in the training"
    assert (
        _one_reason(f"0 of 2 sites; without A ({reason}), B ({reason})") == f"no site has a value: {reason}"
    )
    partly = f"1 of 2 sites; without A ({reason})"
    assert _one_reason(partly) == partly
    assert _one_reason("0 of 2 sites; without A (x), B (y)") == "0 of 2 sites; without A (x), B (y)"
