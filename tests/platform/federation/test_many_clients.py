"""Hundreds of clients in a few workers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_500_clients_stay_below_3_gib(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SCAFFOLD, 20 % of the clients in a round, two workers: memory of all processes of driver and Ray."""
    monkeypatch.syspath_prepend(str(root))
    from benchmarks.federation import many_measured

    assert sys.platform == "linux"
    figures = many_measured(2)
    assert figures["many_clients"] == 500
    assert figures["many_peak_gib"] < 3
