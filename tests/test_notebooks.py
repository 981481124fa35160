"""The notebooks of the documentation run from an empty folder, and their kept outputs are those of a run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = ("library", "finished-run")


def outputs(notebook: dict) -> list[list[tuple[str, str]]]:
    """Kind and text of every output of every cell; numbers are left out, as machines round differently."""
    shown = []
    for cell in notebook["cells"]:
        rows = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = "".join(output.get("text") or data.get("text/plain", ""))
            kind = "picture" if "image/png" in data else output["output_type"]
            rows.append((kind, "" if kind == "picture" else re.sub(r"[-\d.]+|\s+", " ", text).strip()))
        shown.append(rows)
    return shown


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_small_and_have_outputs(root: Path, name: str) -> None:
    file = root / "docs" / "notebooks" / f"{name}.ipynb"
    assert file.stat().st_size < 200_000
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert sum(bool(cell["outputs"]) for cell in code) >= 4
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert "SYNTHETIC" in file.read_text(encoding="utf-8")
    assert {file.stem for file in file.parent.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_again(root: Path, tmp_path: Path, name: str) -> None:
    import nbformat

    spec = importlib.util.spec_from_file_location("run_notebooks", root / "docs" / "run_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = root / "docs" / "notebooks" / f"{name}.ipynb"
    again = module.executed(file, tmp_path)
    assert outputs(again) == outputs(nbformat.read(file, as_version=4))
