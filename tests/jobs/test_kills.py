"""Jobs that were ended at random moments and run again leave what an undisturbed one leaves."""

import random
from pathlib import Path

import pytest
from benchmarks.job_kills import kill_job


@pytest.mark.slow
@pytest.mark.parametrize(("job", "kills"), [("train", 4), ("federate", 2), ("search", 2)])
def test_kills_cost_nothing_but_time(tmp_path: Path, job: str, kills: int) -> None:
    row = kill_job(job, tmp_path, kills, random.Random()).row()  # other moments every time
    assert row["kills"] == kills
    assert row["identical"] == 1, row["different"]
    assert row["stale_files"] == 0
    assert row["status_right"] == 1, row["status_wrong"]
