"""The page: self-contained, escaped, marked if synthetic, and complete whatever file is missing."""

import itertools
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.registry import entries
from equipoise.platform.report.blocks import Section, Text
from equipoise.platform.report.page import MAX_BYTES, render, write_report
from equipoise.platform.report.run_files import FILES, RunFiles
from equipoise.platform.report.style import Figure

HOSTILE = "<script>document.body.dataset.hacked=1</script>\"'&<img src=https://evil.example/x.png>"


class Page(HTMLParser):
    """Attributes that load something, ids, texts by tag, and the tags themselves."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.attributes: set[str] = set()
        self.tags: list[str] = []
        self.text: dict[str, list[str]] = {}
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "link", "br", "input"):
            self._inside.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
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
    assert order == [*(name for name in entries("sections") if name not in absent), "glossary"]
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


def test_there_is_no_script_and_the_policy_forbids_all(html: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    rules = dict(part.strip().split(" ", 1) for part in policy[1].replace("&#39;", "'").split(";"))
    assert rules["default-src"] == rules["script-src"] == "'none'"
    page = Page(html)
    assert "script" not in page.tags
    assert not [name for name in page.attributes if name.startswith("on")]


def test_every_figure_has_drawings_a_reading_aid_and_its_files(html: str) -> None:
    page = Page(html)
    figures = re.findall(r'<figure id="(figure-[^"]+)"(.*?)</figure>', html, re.DOTALL)
    assert len(figures) >= 14
    assert len(page.ids) == len(set(page.ids))
    for name, body in figures:
        drawings = re.findall(r"<svg .*?</svg>", body, re.DOTALL)
        assert drawings, name
        for drawing in drawings:
            marks = {e.tag.rpartition("}")[2] for e in ET.fromstring(drawing).iter()}
            assert marks & {"path", "circle", "rect"}, name
        assert "<figcaption>" in body, name
        assert 'href="data:text/csv' in body, name
        uri = re.search(r'href="data:image/svg[^,]*,([^"]*)" download="SYNTHETIC-[^"]*\.svg"', body)
        assert uri is not None, name
        file = unquote(uri[1].replace("&amp;", "&").replace("&#39;", "'"))
        root = ET.fromstring(file)
        assert root.get("width"), name
        assert root.get("height"), name
        assert "var(--" not in file, "colours of a file are resolved"
        assert "SYNTHETIC DATA" in "".join(root.itertext())


def test_headings_are_in_order(html: str) -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])\b", html)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_a_figure_that_cannot_be_drawn_is_named_and_its_data_stay(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from equipoise.platform.report.sections import quality

    figure = Figure("odd", "Odd", [{"type": "pie"}], {}, "", pd.DataFrame({"slice": ["half"]}))
    monkeypatch.setattr(quality, "tiles_histogram", lambda slides: figure)
    html = render(RunFiles(run_folder))
    assert "ValueError: traces of type &#39;pie&#39; are not supported" in html
    assert html.count("data-failed") == 1
    assert ">half<" in html
    assert "figure=odd failed" in caplog.text


def test_size_and_banner(run_folder: Path, html: str) -> None:
    assert len(html.encode()) < MAX_BYTES
    assert "Research use only." in html
    assert "Not a medical device" in html


def test_synthetic_runs_are_marked_everywhere(html: str) -> None:
    assert '<body class="synthetic">' in html
    assert "SYNTHETIC DATA" in Page(html).words("strong")
    assert "(SYNTHETIC DATA)" in Page(html).words("title")
    drawings = re.findall(r"<svg xmlns.*?</svg>", html, re.DOTALL)
    assert len(drawings) > 14
    charts = [d for d in drawings if "<desc" in d]
    assert len(charts) > 7
    assert all(">SYNTHETIC DATA</text>" in d for d in charts)
    assert "they say nothing about patients" in html.lower()


def test_real_runs_are_not_marked(make_run: Callable, made: type) -> None:
    html = write_report(make_run(made(prefix="TCGA-AA-"))).read_text()
    without_style = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    assert "SYNTHETIC" not in without_style
    assert "<body>" in html
    assert "synthetic" not in without_style.lower()


def test_hostile_names_are_shown_not_run(make_run: Callable, made: type) -> None:
    html = write_report(make_run(made(hostile=HOSTILE))).read_text()
    page = Page(html)
    assert "script" not in page.tags
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
