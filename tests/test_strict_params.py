"""Unknown names are refused by one base of parameter models in ``models`` and one in ``datasets``."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_there_are_two_definitions() -> None:
    files = [
        path for room in ("jobs", "platform", "datasets", "models") for path in (ROOT / room).rglob("*.py")
    ]
    assert len(files) > 100
    defining = [str(path.relative_to(ROOT)) for path in files if 'extra="forbid"' in path.read_text()]
    assert sorted(defining) == ["datasets/params.py", "models/params.py"]
