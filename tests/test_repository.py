"""What a public repository needs: a workflow that calls ``.ci/run``, templates, policies, a citation."""

import re
from pathlib import Path

import pytest
import yaml


def test_the_workflow_runs_what_every_machine_runs(root: Path) -> None:
    workflow = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert "bash .ci/run" in [step.get("run") for step in steps]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@(v\d+|[0-9a-f]{40})", name) for name in used), used
    ci, makefile = (root / ".ci" / "run").read_text(), (root / "Makefile").read_text()
    called = re.findall(r"^make ([\w-]+)$", ci, re.MULTILINE)
    assert {"setup", "lint", "test", "test-slow", "docs", "dist"} <= set(called)
    assert called.index("docs") > called.index("test"), (
        "it writes generated pages again; the tests see stale ones"
    )
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in called)


@pytest.mark.parametrize("form", ["bug", "question"])
def test_issue_forms_are_valid(root: Path, form: str) -> None:
    content = yaml.safe_load((root / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text())
    assert {"name", "description", "body"} <= set(content)
    fields = [part for part in content["body"] if part["type"] != "markdown"]
    assert fields
    assert len({part["id"] for part in fields}) == len(fields)
    for part in fields:
        assert part["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"]["label"]


def test_citation_has_what_the_format_requires(root: Path) -> None:
    """Required keys of Citation File Format 1.2.0."""
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert all(set(author) & {"name", "family-names", "alias"} for author in citation["authors"])
    assert citation["license"] == "Apache-2.0"


def test_policies_say_where_to_turn(root: Path) -> None:
    assert "Report a vulnerability" in (root / "SECURITY.md").read_text()
    assert "in private" in (root / "CODE_OF_CONDUCT.md").read_text()
    assert (root / ".github" / "pull_request_template.md").stat().st_size > 200
