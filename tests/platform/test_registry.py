"""What entries say of themselves, and where another package's entries get what they leave unsaid."""

import ast
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import BaseModel

from equipoise.platform.errors import StudyError
from equipoise.platform.federation.entries import StrategyParams
from equipoise.platform.registry import BASES, KINDS, Entry, entries, get, resolve


def test_every_entry_of_a_kind_with_a_base_derives_from_it() -> None:
    assert set(BASES) <= set(KINDS)
    derived = [
        issubclass(entry.params, resolve(base))
        for kind, base in BASES.items()
        for entry in entries(kind).values()
    ]
    assert len(derived) > 70
    assert all(derived)


def test_attributes_are_those_of_the_entry_or_the_defaults_of_its_kind() -> None:
    class Patient(BaseModel):
        asynchronous: ClassVar[bool] = True

    foreign = Entry("patient", "waits for nobody", Patient, "somewhere:Strategy", base=StrategyParams)
    assert foreign.attribute("asynchronous")
    assert not foreign.attribute("sequential")
    with pytest.raises(AttributeError, match="asynchronos"):
        foreign.attribute("asynchronos")
    assert get("strategies", "scaffold").attribute("sends_second_vector")
    assert not get("strategies", "fedavg").attribute("sends_second_vector")


MIDPOINT = ("middle of all updates", BaseModel, "elsewhere:Midpoint")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``install(group="name")``: another package with entries in these groups."""

    def add(**names: str) -> None:
        def found(*, group: str) -> list[EntryPoint]:
            name = names.get(group.removeprefix("equipoise."))
            return [] if name is None else [EntryPoint(name, f"{__name__}:MIDPOINT", group)]

        monkeypatch.setattr(EntryPoint, "load", lambda self: MIDPOINT)
        monkeypatch.setattr("equipoise.platform.registry.entry_points", found)
        entries.cache_clear()

    yield add
    monkeypatch.undo()
    entries.cache_clear()


def test_the_earlier_name_of_a_kind_is_understood_with_a_warning(
    install: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    install(site_rules="midpoint")
    assert get("site_rules", "midpoint") == get("server_aggregations", "midpoint")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "site_rules are now called server_aggregations" in said[0]
    assert "entry midpoint: group equipoise.site_rules is now called equipoise.server_aggregations" in said[1]


def test_a_package_may_serve_both_versions_and_may_not_take_a_name(
    install: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    install(site_rules="midpoint", server_aggregations="midpoint")
    assert get("server_aggregations", "midpoint").summary == "middle of all updates"
    assert not caplog.records
    install(server_aggregations="median")
    with pytest.raises(StudyError, match="'median', which exists already"):
        entries("server_aggregations")


#: Names of entries that are also words of their own: a column, a modality, an optimiser's state.
WORDS = {
    "balanced",
    "clinical",
    "cohort",
    "column",
    "file",
    "institution",
    "late",
    "mean",
    "median",
    "none",
    "omics",
    "region",
    "site",
}


def product_modules(root: Path) -> dict[str, ast.Module]:
    """Module → tree, of all product code but the light modules in which entries are declared."""
    files = [
        file for top in ("platform", "datasets", "models", "jobs") for file in (root / top).rglob("*.py")
    ]
    return {
        "equipoise." + ".".join(file.relative_to(root).with_suffix("").parts): ast.parse(file.read_text())
        for file in files
        if file.name != "entries.py"
    }


def test_no_module_compares_names_of_entries(root: Path) -> None:
    kinds = [kind for kind in KINDS if kind not in ("sections", "cohorts", "templates")]
    names = {name for kind in kinds for name in entries(kind)} - WORDS
    modules = product_modules(root)
    assert len(names) > 60
    assert len(modules) > 250
    compared = [
        f"{module}, line {node.lineno}: {text.value!r}"
        for module, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.MatchValue)
        for text in ast.walk(node)
        if isinstance(text, ast.Constant) and text.value in names
    ]
    assert not compared


def test_no_module_knows_the_class_of_an_entry(root: Path) -> None:
    """What an entry leads to is imported by its own room only; everybody else asks the registry."""
    targets = {tuple(entry.target.split(":")) for kind in KINDS for entry in entries(kind).values()}
    modules = product_modules(root)
    imported = [
        (module, node.module, alias.name)
        for module, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module is not None
    ]
    assert len(imported) > 1000
    foreign = [
        f"{module} imports {name}"
        for module, home, name in imported
        if (home, name) in targets and home.rpartition(".")[0] != module.rpartition(".")[0]
    ]
    assert not foreign
