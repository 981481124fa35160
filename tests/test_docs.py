"""The documentation is up to date: the reference page matches the code, and relative links resolve."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

#: Sections of docs/api.md that hold code.
API_SECTIONS = (
    "A slide",
    "Features of a slide",
    "A feature store",
    "Balance the losses of your own training loop",
    "Federate your own model",
    "Metrics with intervals",
    "The results of a run",
)


def module_of(root: Path, name: str):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", root / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_page_is_up_to_date(root: Path) -> None:
    module = module_of(root, "build")
    assert module.TARGET.read_text(encoding="utf-8") == module.text(), "run `make docs`"


def test_tables_of_pages_are_those_of_the_results(root: Path) -> None:
    tables = module_of(root, "tables")
    assert root / "docs" / "path-gptomic.md" in tables.pages()
    for page in tables.pages():
        text = page.read_text(encoding="utf-8")
        assert tables.with_tables(text) == text, f"run `make docs`: {page.name}"


def test_benchmark_page_is_up_to_date(root: Path) -> None:
    module = module_of(root, "benchmark_page")
    page = module.text()
    assert module.TARGET.read_text(encoding="utf-8") == page, "run `make docs`"
    results = {file.stem for file in (root / "benchmarks" / "results").glob("*.json")}
    assert results == {name for name in re.findall(r"^## (\w+)$", page, re.MULTILINE) if module.result(name)}
    assert "| `speedup_40x` |" in page


def test_reference_page_names_every_option(root: Path) -> None:
    page = (root / "docs" / "reference.md").read_text(encoding="utf-8")
    commands = page.partition("## Commands")[2].partition("## Study file")[0]
    options = re.findall(r"^\| `([^`]*)` \| [^|]*\|$", commands, re.MULTILINE)
    assert len(options) > 10
    assert all(re.fullmatch(r"(-\w, )?--[\w-]+", names) for names in options)
    assert "`--retry-failed`" in commands  # an option of a single job


def test_relative_links_lead_somewhere(root: Path) -> None:
    broken = []
    for page in [*root.glob("*.md"), *root.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                broken.append(f"{page.name}: {link}")
    assert not broken


def test_readme_is_short(root: Path) -> None:
    assert len((root / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_walk_names_files_that_exist(root: Path) -> None:
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    walk = text.split("## A walk through the code")[1]
    paths = re.split(r"^\*\*(Where does .+ go)\?\*\*", walk, flags=re.MULTILINE)[1:]
    assert paths[::2] == [
        "Where does a slide go",
        "Where does a loss go",
        "Where does an explanation go",
        "Where does a pre-trained model go",
        "Where does an update go",
    ]
    for title, lines in zip(paths[::2], paths[1::2], strict=True):
        numbered = re.findall(r"^\d+\. (.+)$", lines, re.MULTILINE)
        assert 5 < len(numbered) < 15, title
        for line in numbered:
            [file, *others] = re.findall(r"`([a-z_/]+\.py)`", line)
            assert line.startswith(f"`{file}`: "), line
            assert not others, line
            assert (root / file).is_file(), line


def api_sections(root: Path) -> dict[str, list[str]]:
    """Heading of docs/api.md → its blocks of Python, in order."""
    parts = re.split(r"^## (.+)$", (root / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    blocks = (re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for text in parts[2::2])
    return dict(zip(parts[1::2], blocks, strict=True))


@pytest.mark.cluster
@pytest.mark.parametrize("section", API_SECTIONS)
def test_examples_of_the_api_run_as_written(
    root: Path, library_inputs: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    sections = api_sections(root)
    assert tuple(sections) == API_SECTIONS
    assert sections[section]
    monkeypatch.chdir(library_inputs)
    names: dict[str, object] = {}
    for block in sections[section]:
        exec(compile(block, f"docs/api.md, {section}", "exec"), names)


@pytest.fixture(scope="module")
def library_inputs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples read: a slide, a store, a run of two tasks, and tables as STAMP writes them."""
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.run.steps import run_steps

    folder = tmp_path_factory.mktemp("library")
    small = {
        "model": {"kind": "mean_pool", "dim": 8},
        "training.epochs": 2,
        "evaluation.bootstrap": 50,
        "splits.folds": 2,
        "features.store": str(folder / "features"),
        "features.mpp": 1.0,
    }
    study = load_study(tiny / "study.yaml", small)
    steps = ("validate", "extract", "train", "evaluate")
    run_steps(study, RunFolder.open(study, str(folder / "runs" / "study"), "auto"), steps)
    slide = max(tiny.rglob("*.svs"), key=lambda file: file.stat().st_size)
    shutil.copy(slide, folder / "crc.svs")
    rng = np.random.default_rng(4)
    for name, first in (("", 0), ("split-0", 0), ("split-1", 40)):
        truth = np.arange(40) % 4 == 0
        score = 1 / (1 + np.exp(-rng.normal(2.0 * truth - 1)))
        table = {
            "PATIENT": [f"p{first + i}" for i in range(40)],
            "isMSIH": np.where(truth, "MSIH", "nonMSIH"),
        }
        table |= {"pred": np.where(score > 0.5, "MSIH", "nonMSIH")}
        table |= {
            "isMSIH_MSIH": score,
            "isMSIH_nonMSIH": 1 - score,
            "loss": -np.log(np.where(truth, score, 1 - score)),
        }
        (folder / name).mkdir(exist_ok=True)
        pd.DataFrame(table).to_csv(folder / name / "patient-preds.csv", index=False)
    return folder
