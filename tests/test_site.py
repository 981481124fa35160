"""The documentation site: complete, built without a warning, and nothing on its pages comes from elsewhere."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

#: What makes a browser fetch something.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*?\bsrc=["']?((?:https?:)?//[^"'> ]+)"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon))[^>]*?\bhref=["']?((?:https?:)?//[^"'> ]+)"""
    r"""|@import\s+(?:url\()?["']?((?:https?:)?//[^"') ]+)|\burl\(["']?((?:https?:)?//[^"') ]+)"""
)


def paths_of(nav: object) -> list[str]:
    """Pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [path for part in parts for path in paths_of(part)]  # type: ignore[union-attr]


def test_every_page_has_a_place_in_the_navigation(root: Path) -> None:
    docs = root / "docs"
    pages = [
        str(file.relative_to(docs).with_suffix(".md"))
        for end in ("md", "ipynb")
        for file in docs.rglob(f"*.{end}")
    ]
    listed = paths_of(yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert len(listed) == len(set(listed))
    assert set(pages) == {path for path in listed if path != "index.md" and not path.startswith("project/")}


def test_links_are_pointed_at_pages_of_the_site(root: Path) -> None:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_pages", root / "docs" / "site_pages.py")
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    assert pages.site_uri("docs/tables.md") == "tables.md"
    assert pages.site_uri("README.md") == "index.md"
    assert pages.site_uri("models/base.py") == "source/models/base.py.md"
    assert pages.repository_path("source/models/base.py.md") is None
    assert pages.site_uri("tests/README.md") == "source/tests/README.md"
    assert pages.repository_path("project/changelog.md") == "CHANGELOG.md"
    assert pages.target_of("docs/how-to/own-encoder.md", "../../models/base.py") == "models/base.py"
    assert pages.target_of("docs/tables.md", "https://example.org/x") is None
    text = "[a](b.md) `x`\n\n```text\n[a](b.md)\n```\n\n[a](b.md#c)\n"
    changed = pages.outside_code(text, lambda link: f"[{link[2]}{link[3] or ''}]".join(("](", ")")))
    assert changed == "[a]([b.md]) `x`\n\n```text\n[a](b.md)\n```\n\n[a]([b.md#c])\n"


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as `make docs` does."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=source,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(root: Path, tmp_path: Path) -> None:
    done = build(root, tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 50
    for file in [*pages, *(tmp_path / "site").rglob("*.css")]:
        assert [
            next(filter(None, found)) for found in LOADED.findall(file.read_text(encoding="utf-8"))
        ] == [], file
    linked = (tmp_path / "site" / "extending.html").read_text(encoding="utf-8")
    assert 'href="source/models/encoders/protocol.py.html"' in linked
    start = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="tables.html"' in start
    assert 'src="report.png"' in start
    notebook = (tmp_path / "site" / "notebooks" / "library.html").read_text(encoding="utf-8")
    assert 'src="library-1.png"' in notebook
    assert (tmp_path / "site" / "notebooks" / "library-1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_warning_is_an_error(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root / "docs", copy / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (root / "mkdocs.yml", *root.glob("*.md")):
        shutil.copy(file, copy / file.name)
    faults = {
        "docs/api.md": "[gone](nowhere.md)",
        "docs/study.md": "[gone](tables.md#no-such-heading)",
        "docs/forgotten.md": "# Forgotten",
        "README.md": "[gone](docs/no-such-page.md)",
    }
    for page, line in faults.items():
        with (copy / page).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    done = build(copy, tmp_path / "site")
    assert done.returncode != 0
    for said in ("nowhere.md", "no-such-heading", "forgotten.md", "no-such-page.md"):
        assert re.search(f"WARNING.*(\n +- )?{said}", done.stderr), said
