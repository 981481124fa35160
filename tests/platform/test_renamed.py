"""Keys under an earlier name: understood with a warning in files and after --set, and in what runs wrote."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from equipoise.platform.errors import StudyError
from equipoise.platform.fingerprints import require_same
from equipoise.platform.renamed import RENAMED, current_key, current_record
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.schema import Study

STUDY: dict[str, Any] = {
    "version": 1,
    "name": "s",
    "cohorts": [{"name": "A", "role": "develop", "clinical": "a.csv"}],
    "tasks": [{"name": "MSI", "type": "binary", "column": "MSI", "positive": "MSI"}],
    "features": {"region_tiles": 64},
    "federation": {
        "rule": "trimmed_mean",
        "rule_params": {"trim": 0.1},
        "gate": {"max_norm": 3},
        "bench_after": 5,
    },
}


def read(folder: Path, data: dict[str, Any], **overrides: Any) -> Study:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return load_study(file, {key.replace("__", "."): value for key, value in overrides.items()})


def test_earlier_names_mean_the_same_and_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = read(tmp_path, STUDY)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(RENAMED) == 5
    for old, new in RENAMED.items():
        assert any(f"study.yaml: {old} is now called {new}" in line for line in said)
    assert study.federation is not None
    assert (study.federation.server_aggregation, study.federation.exclude_after) == ("trimmed_mean", 5)
    assert study.federation.server_aggregation_params == {"trim": 0.1}
    assert (study.federation.validation.max_norm, study.features.chunk_tiles) == (3, 64)
    caplog.clear()
    present = {"features": {"chunk_tiles": 64}, "federation": study.resolved()["federation"]}
    assert read(tmp_path, STUDY | present).resolved() == study.resolved()
    assert not caplog.records


@pytest.mark.parametrize("key", ["federation__rule", "federation__server_aggregation"])
def test_set_takes_both_names_and_wins(tmp_path: Path, key: str) -> None:
    study = read(
        tmp_path, STUDY, **{key: "median", "federation__rule_params": {}, "federation__gate__max_norm": 7}
    )
    assert study.federation is not None
    assert (study.federation.server_aggregation, study.federation.validation.max_norm) == ("median", 7)


def test_both_names_at_once_are_refused(tmp_path: Path) -> None:
    twice = copy.deepcopy(STUDY)
    twice["federation"]["server_aggregation"] = "mean"
    with pytest.raises(
        StudyError, match="federation.rule is the earlier name of federation.server_aggregation"
    ):
        read(tmp_path, twice)


def test_a_problem_under_an_earlier_name_has_its_line(tmp_path: Path) -> None:
    wrong = copy.deepcopy(STUDY)
    wrong["federation"]["bench_after"] = 0
    with pytest.raises(StudyError, match="line 20, federation.exclude_after: ") as error:
        read(tmp_path, wrong)
    assert (tmp_path / "study.yaml").read_text().splitlines()[19].strip() == "bench_after: 0", error


def test_searched_settings_have_both_names(tmp_path: Path) -> None:
    searched = STUDY | {
        "federation": {},
        "search": {"metric": "val/MSI/auroc", "space": {"federation.rule": ["mean", "median"]}},
    }
    study = read(tmp_path, searched)
    assert study.search is not None
    assert study.search.space == {"federation.server_aggregation": ["mean", "median"]}


def test_records_of_earlier_runs_compare_equal() -> None:
    assert current_key("federation.rule_params") == "federation.server_aggregation_params"
    record = {
        "study": STUDY,
        "search": {"space": {"federation.rule": ["mean"]}},
        "clean_costs": [{"rule": "mean"}],
    }
    now = current_record(record)
    assert set(now["study"]["federation"]) == {new.partition(".")[2] for new in RENAMED.values()} - {
        "chunk_tiles"
    }
    assert now["search"]["space"] == {"federation.server_aggregation": ["mean"]}
    assert now["clean_costs"] == [{"server_aggregation": "mean"}]


def test_a_result_made_under_earlier_names_is_the_same(tmp_path: Path) -> None:
    stored = {"federation": {"rule": "mean", "gate": {"max_norm": 3}}}
    now = {"federation": {"server_aggregation": "mean", "validation": {"max_norm": 3}}}
    require_same(stored, now, "another federation", where=tmp_path, fix="remove it")
    now["federation"]["server_aggregation"] = "median"
    with pytest.raises(StudyError, match="federation.server_aggregation: 'mean' → 'median'"):
        require_same(stored, now, "another federation", where=tmp_path, fix="remove it")
