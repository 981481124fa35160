"""The dashboard asks for counters that exist, in panels that Grafana can lay out."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "gridPos", "datasource", "targets"],
    "properties": {
        "id": {"type": "integer"},
        "type": {"enum": ["timeseries", "stat"]},
        "gridPos": {
            "type": "object",
            "required": ["x", "y", "w", "h"],
            "additionalProperties": {"type": "integer", "minimum": 0},
        },
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "required": ["refId", "expr", "legendFormat"]},
        },
    },
}


@pytest.fixture
def dashboard(root: Path) -> dict[str, Any]:
    return json.loads((root / "deploy" / "grafana" / "equipoise.json").read_text())


def test_panels_fill_the_page_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["uid"]
    [variable] = dashboard["templating"]["list"]
    taken: set[tuple[int, int]] = set()
    ids = set()
    for panel in dashboard["panels"]:
        jsonschema.validate(panel, PANEL)
        assert panel["datasource"]["uid"] == f"${{{variable['name']}}}"
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        ids.add(panel["id"])
    assert len(ids) == len(dashboard["panels"])


def test_every_counter_exists(dashboard: dict[str, Any], root: Path) -> None:
    """Ours are in the code that counts; Ray's are in the dashboards that Ray ships."""
    import ray.dashboard.modules.metrics as metrics

    ours = set(re.findall(r'"(equipoise_\w+)"', (root / "platform/extraction/monitoring.py").read_text()))
    known = {f"ray_{name}_total" for name in ours}
    for file in Path(metrics.__file__).parent.glob("dashboards/*.py"):
        known |= set(re.findall(r"\b(?:ray|autoscaler)_\w+", file.read_text()))
    used = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:ray|autoscaler)_\w+", target["expr"])
    }
    assert len(ours) == 4
    assert {f"ray_{name}_total" for name in ours} <= used
    assert used <= known
