"""``equipoise report --compare`` is the leaderboard, and says what it needs."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from equipoise.jobs import report
from equipoise.platform.errors import StudyError
from equipoise.platform.report import leaderboard_datasets


def test_runs_are_compared_only_when_asked_and_only_two_or_more() -> None:
    with pytest.raises(StudyError, match="named to be compared"):
        report._compare(["a", "b"], None, asked=False)
    with pytest.raises(StudyError, match="two runs or more"):
        report._compare(["a"], None, asked=True)


def test_the_comparison_is_that_of_the_leaderboard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def compare(runs: list[Path], out: Path, baseline: str | None = None) -> SimpleNamespace:
        asked.append((runs, out))
        return SimpleNamespace(text="the table", page=out / "leaderboard.html", best="b", synthetic=True)

    monkeypatch.setattr(leaderboard_datasets, "compare_runs", compare)
    result = report._compare(["x/a", "x/b"], str(tmp_path), asked=True)
    assert asked == [([Path("x/a"), Path("x/b")], tmp_path)]
    assert capsys.readouterr().out == "the table\n"
    assert result.fields["page"] == tmp_path / "leaderboard.html"
    assert result.fields["synthetic"] is True
