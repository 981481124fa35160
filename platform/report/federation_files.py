"""Reading ``federated/`` of a run folder for the report; what is absent or broken becomes a block that says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.platform.report.blocks import Missing

COMMAND = "equipoise federate"
#: File → what it is.
FILES = {
    "federated/setting.json": "clients, settings and costs of rules",
    "federated/sites.csv": "results by site",
    "federated/rounds.jsonl": "history of the rounds",
    "federated/traffic.csv": "bytes and verdicts of each client",
}


class FederationFiles:
    """The files of a federation, read once.

    Parameters
    ----------
    folder
        The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.missing: list[Missing] = []
        self.setting: dict[str, Any] = self._read("federated/setting.json", _json) or {}
        self.sites: pd.DataFrame | None = self._read("federated/sites.csv", _sites)
        self.rounds: pd.DataFrame | None = self._read("federated/rounds.jsonl", _lines)
        self.traffic: pd.DataFrame | None = self._read("federated/traffic.csv", _traffic)

    def _read(self, name: str, reader: Callable[[Path], Any]) -> Any:
        path, problem = self.folder / name, ""
        try:
            if path.exists():
                return reader(path)
        except (OSError, ValueError, KeyError) as broken:
            problem = f"{type(broken).__name__}: {broken}"
        self.missing.append(Missing(name, FILES[name], COMMAND, problem))
        return None


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _sites(path: Path) -> pd.DataFrame:
    # NA is a tissue source site, not a gap.
    texts = dict.fromkeys(
        ("plan", "method", "role", "scope", "client", "task", "kind", "metric", "note"), str
    )
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=texts)
    return table.astype({"n": "Int64", "n_pos": "Int64"}).fillna({"note": ""})


def _traffic(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, dtype={"client": str, "plan": str, "fold": str})


def _lines(path: Path) -> pd.DataFrame:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return pd.DataFrame(rows)
