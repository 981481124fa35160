"""Runs the notebooks of ``docs/notebooks`` in an empty folder and keeps their outputs.

``python -m docs.run_notebooks`` runs them again. Outputs are kept small and the same from run to run: no times of
execution, no progress, no metadata of the machine. A test runs them, too.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent / "notebooks"


def executed(file: Path, folder: Path, timeout: int = 300) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run in a folder.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    notebook.metadata = {"language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                for kind in ("text/html", "image/jpeg"):  # tables as text, as the site shows them
                    output.get("data", {}).pop(kind, None)
                if "metadata" in output:
                    output.metadata = {}
    nbformat.validate(notebook)
    return notebook


if __name__ == "__main__":
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        with TemporaryDirectory() as folder:
            nbformat.write(executed(file, Path(folder)), file)
        sys.stdout.write(f"ran {file.name}: {file.stat().st_size / 1024:.0f} KiB\n")
