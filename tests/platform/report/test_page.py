"""The page: self-contained, escaped, marked if synthetic, and complete whatever file is missing."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.registry import entries
from equipoise.platform.report.blocks import Section, Text
from equipoise.platform.report.page import MAX_BYTES, render, write_report
from equipoise.platform.report.run_files import FILES, RunFiles

HOSTILE = "<script>document.body.dataset.hacked=1</script>\"'&<img src=https://evil.example/x.png>"


class Page(HTMLParser):
    """Attributes that load something, ids, texts by tag, and the tags themselves."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text: dict[str, list[str]] = {}
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "link", "br", "input"):
            self._inside.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                self.loads.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.text.setdefault(self._inside[-1], []).append(data)

    def words(self, tag: str) -> str:
        return " ".join("".join(self.text.get(tag, [])).split())


@pytest.fixture(scope="module")
def html(run_folder: Path) -> str:
    return render(RunFiles(run_folder))


def test_all_sections_are_there_in_order_and_none_failed(html: str) -> None:
    order = re.findall(r'<section id="(\w+)"', html)
    # This run did none of these, and its model has no branches.
    absent = {"search", "federation", "branches", "explain"}
    assert order == [name for name in entries("sections") if name not in absent]
    assert "data-failed" not in html


def test_nothing_is_loaded_from_anywhere(html: str) -> None:
    page = Page(html)
    assert page.loads
    for tag, name, value in page.loads:
        assert value.startswith(("#", "data:")), (tag, name, value[:80])
    assert not {"link", "iframe", "object", "embed", "form", "base", "audio", "video"} & set(page.tags)
    css = "".join(page.text["style"])
    assert "@import" not in css
    assert all(u.startswith(('"data:', "data:")) for u in re.findall(r"url\(([^)]*)", css))


def test_the_policy_names_the_two_scripts_and_forbids_the_rest(html: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    rules = dict(part.strip().split(" ", 1) for part in policy[1].replace("&#39;", "'").split(";"))
    assert rules["default-src"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 2
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert rules["script-src"].split() == [f"'sha256-{d}'" for d in digests]
    assert "unsafe" not in rules["script-src"]
    assert "http" not in policy[1].replace("http-equiv", "")


def test_vendored_plotly_is_the_file_its_licence_names() -> None:
    import equipoise.platform.report as package

    assets = Path(next(iter(package.__path__))) / "assets"
    licence = (assets / "plotly-cartesian.LICENSE.txt").read_text()
    assert hashlib.sha256((assets / "plotly-cartesian.min.js").read_bytes()).hexdigest() in licence
    assert "MIT License" in licence


def test_every_figure_has_a_place_a_reading_aid_and_its_data(html: str) -> None:
    page = Page(html)
    block = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert block is not None
    figures = json.loads(block[1], parse_constant=pytest.fail)
    assert len(figures) >= 14
    assert set(figures) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert html.count('class="plot"') == len(figures)
    assert page.tags.count("figcaption") >= len(figures)
    downloads = [v for t, n, v in page.loads if t == "a" and v.startswith("data:text/csv")]
    assert len(downloads) >= len(figures)


def test_size_and_banner(run_folder: Path, html: str) -> None:
    assert len(html.encode()) < MAX_BYTES
    assert "Research use only." in html
    assert "Not a medical device" in html


def test_synthetic_runs_are_marked_everywhere(html: str) -> None:
    assert '<body class="synthetic">' in html
    assert "SYNTHETIC DATA" in Page(html).words("strong")
    assert "(SYNTHETIC DATA)" in Page(html).words("title")
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert len(figures) > 0
    for figure in figures.values():
        assert figure["layout"]["annotations"][-1]["text"] == "SYNTHETIC DATA"
        assert figure["name"].startswith("SYNTHETIC-")
    assert "they say nothing about patients" in html.lower()


def test_real_runs_are_not_marked(make_run: Callable, made: type) -> None:
    html = write_report(make_run(made(prefix="TCGA-AA-"))).read_text()
    without_style = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    assert "SYNTHETIC" not in without_style
    assert "<body>" in html
    assert "synthetic" not in without_style.split("<script>")[0].lower()


def test_hostile_names_are_shown_not_run(make_run: Callable, made: type) -> None:
    html = write_report(make_run(made(hostile=HOSTILE))).read_text()
    page = Page(html)
    assert page.tags.count("script") == 3
    assert HOSTILE in "".join(page.text["h1"])
    assert "data-failed" not in html
    for tag, name, value in page.loads:
        assert value.startswith(("#", "data:")), (tag, name, value[:80])
    assert page.tags.count("img") == 3  # the thumbnails and no other


def test_an_empty_run_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    html = write_report(tmp_path).read_text()
    assert "data-failed" not in html
    assert "There is no result yet." in html
    for name in ("manifest/flow.json", "evaluation/predictions.parquet", "provenance/environment.json"):
        assert name in html
        assert FILES[name].command in html


@pytest.mark.parametrize("name", FILES)
def test_any_single_file_may_be_missing(run_folder: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    gone = copy / name
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()
    html = render(RunFiles(copy))
    assert "data-failed" not in html


def test_all_files_may_be_broken_and_each_is_named(run_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    for name in FILES:
        if (copy / name).is_file():
            (copy / name).write_text("{[ neither this nor that")
    (copy / "folds/0-0/history.csv").write_text("loss\n1\n")
    (copy / "qc/slide-00.jpg").write_text("no picture")
    html = render(RunFiles(copy))
    assert "data-failed" not in html
    problems = html[html.index('id="limits"') :]
    for name in [*(n for n in FILES if "." in n), "folds/0-0/history.csv"]:
        assert f"<li>{name}: " in problems, name
    assert "qc/slide-00.jpg: cannot identify image file" in html


def test_a_section_that_fails_is_named_and_the_others_stand(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from equipoise.platform.report.sections import flow

    def broken(run: RunFiles, params: object) -> Section:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(flow, "build", broken)
    html = render(RunFiles(run_folder))
    assert html.count("data-failed") == 1
    assert "ZeroDivisionError: on purpose" in html
    assert 'id="survival"' in html
    assert "section=flow failed" in caplog.text


def test_sections_without_their_task_are_left_out(run_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    study = copy / "provenance/resolved.yaml"
    study.write_text("name: one\ntasks: [{name: LISS, type: regression, main: true}]\n")
    order = re.findall(r'<section id="(\w+)"', render(RunFiles(copy)))
    assert "regression" in order
    assert not {"classification", "survival"} & set(order)


def test_a_failed_audit_leads_the_warnings(run_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    path = copy / "manifest/leakage.csv"
    audit = pd.read_csv(path)
    audit.loc[1, ["overlap", "ok"]] = [2, False]
    audit.to_csv(path, index=False)
    html = render(RunFiles(copy))
    assert "the leakage audit failed 1 checks: these results must not be used" in html
    assert "patient, fold 0-1: 2 in common" in html
    assert "the test results are not valid" in html


def test_section_parameters_come_from_the_study(run_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    path = copy / "provenance/resolved.yaml"
    text = path.read_text().replace("sections: {}", "sections: {quality: {thumbnails: 0}}")
    path.write_text(text)
    assert "data:image/jpeg" not in render(RunFiles(copy))
    assert "data:image/jpeg" in render(RunFiles(run_folder))


def test_the_page_is_a_function_of_the_folder(run_folder: Path) -> None:
    assert render(RunFiles(run_folder)) == render(RunFiles(run_folder))


def test_numbers_on_the_page_are_those_of_the_metrics_table(run_folder: Path, html: str) -> None:
    metrics = pd.read_csv(run_folder / "evaluation/metrics.csv", keep_default_na=False)
    row = metrics.query("role == 'test' and task == 'MSI' and metric == 'auroc' and cohort == 'all'")
    row = row.query("site == 'all' and fold == 'all' and predictor == 'model'").iloc[0]
    value, low, high = (float(row[c]) for c in ("value", "low", "high"))
    assert f'<p class="value">{value:.2f}</p>' in html
    assert f"95 % CI {low:.2f}–{high:.2f}" in html
    assert f"{value:.3f} ({low:.3f}–{high:.3f})" in html


def test_no_run_folder_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        write_report(tmp_path / "absent")


def test_a_study_of_many_patients_stays_below_the_limit(make_run: Callable, made: type) -> None:
    folder = make_run(made(patients=250, external=("x", "y"), thumbnails=12))
    assert write_report(folder).stat().st_size < MAX_BYTES


def test_sections_of_other_packages_are_rendered(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from equipoise.platform.report import page

    known = entries("sections")
    extra = replace_entry(known["verdict"], "extra")
    monkeypatch.setattr(page, "entries", lambda kind: {**known, "extra": extra})
    html = render(RunFiles(run_folder))
    assert html.count('class="score ') == 4  # the verdict twice, two scores each
    assert isinstance(Section("t", "l", [Text("x")]).blocks[0], Text)


def replace_entry(entry: object, name: str) -> object:
    return entry._replace(name=name)  # type: ignore[attr-defined]
