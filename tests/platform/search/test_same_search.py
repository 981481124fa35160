"""A folder of trials belongs to one search, also if an earlier version wrote it under other names."""

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.platform.errors import StudyError
from equipoise.platform.search.search import check_same_search


def fingerprint(**splits: Any) -> dict[str, Any]:
    return {
        "search": {"space": {"federation.server_aggregation": ["mean", "median"]}},
        "study": {"splits": {"scheme": "kfold", "folds": 3, **splits}, "features": {"chunk_tiles": 8}},
        "federation": {"server_aggregation": "mean", "validation": {"norm_factor": 10.0}},
    }


def test_records_of_an_earlier_version_are_of_the_same_search(tmp_path: Path) -> None:
    earlier = {
        "search": {"space": {"federation.rule": ["mean", "median"]}},
        "study": {
            "splits": {"scheme": "kfold", "folds": 3, "test_fraction": 0.2},
            "features": {"region_tiles": 8},
        },
        "federation": {"rule": "mean", "gate": {"norm_factor": 10.0}},
    }
    (tmp_path / "made_by.json").write_text(json.dumps(earlier))
    check_same_search(tmp_path, fingerprint())
    with pytest.raises(StudyError, match="study.splits.inner_val: None → 0.3"):
        check_same_search(tmp_path, fingerprint(inner_val=0.3))


def test_the_first_search_of_a_folder_is_recorded(tmp_path: Path) -> None:
    check_same_search(tmp_path, fingerprint())
    check_same_search(tmp_path, fingerprint())
    with pytest.raises(StudyError, match="study.splits.repeats: None → 2"):
        check_same_search(tmp_path, fingerprint(repeats=2))
