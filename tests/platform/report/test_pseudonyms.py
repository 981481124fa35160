"""Pseudonyms: no name of the run is on the page, in its files or drawings, and nothing else is lost."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
import yaml

from equipoise.platform.errors import DataError
from equipoise.platform.report.page import write_report
from equipoise.platform.report.pseudonyms import KEY, Pseudonyms, names_of, read_key
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.summary import summary_page


def everything(html: str) -> str:
    """The page with every file that is inside it."""
    plain = html.replace("&amp;", "&").replace("&#39;", "'").replace("&#34;", '"')
    files = [base64.b64decode(d).decode("utf-8", "replace") for d in re.findall(r'base64,([^"]+)"', plain)]
    files += [unquote(d) for d in re.findall(r'href="data:image/svg[^,]*,([^"]*)"', plain)]
    return "\n".join([plain, *files])


@pytest.fixture(scope="module")
def folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with a private place, a machine, a user, and warnings that name patients."""
    copy = Path(shutil.copytree(run_folder, tmp_path_factory.mktemp("share") / "crc-msi"))
    patient = pd.read_parquet(copy / "manifest/patients.parquet")["patient"].iloc[0]
    environment = json.loads((copy / "provenance/environment.json").read_text())
    environment |= {"hostname": "charite-gpu-07", "user": "mustermann"}
    environment["command"] = (
        "/home/mustermann/bin/equipoise run -c /srv/private/anna/study.yaml -o /srv/private/out"
    )
    (copy / "provenance/environment.json").write_text(json.dumps(environment))
    study = yaml.safe_load((copy / "provenance/resolved.yaml").read_text())
    study["cohorts"] = [
        {"name": "crc-a", "clinical": {"path": "tables/crc_meyer.csv"}, "slides_dir": "s3://hospital/secret"}
    ]
    (copy / "provenance/resolved.yaml").write_text(yaml.safe_dump(study))
    (copy / "manifest/warnings.json").write_text(
        json.dumps([f"patient {patient} has two slides in /data/x/y.svs"])
    )
    return copy


@pytest.fixture(scope="module")
def shared(folder: Path) -> str:
    return write_report(folder, name="report-share.html", pseudonymise=True).read_text()


def test_no_name_of_the_run_is_anywhere_on_the_page(folder: Path, shared: str) -> None:
    text = everything(shared)
    open_page = everything(write_report(folder).read_text())
    names = names_of(RunFiles(folder))
    patients = [name for name, kind in names.items() if kind == "P"]
    assert len(patients) > 100
    assert sum(name in open_page for name in patients) > 50, "the page without pseudonyms does show names"
    for name in [
        *names,
        "charite-gpu-07",
        "mustermann",
        "/srv/private",
        "crc_meyer",
        "hospital/secret",
        "/data/x",
    ]:
        assert name not in text, name
    key = (folder / KEY).read_text().strip()
    assert key not in text
    assert "data-failed" not in shared


def test_the_shared_page_says_so_and_keeps_numbers_sections_and_figures(folder: Path, shared: str) -> None:
    open_page = write_report(folder).read_text()
    for pattern in (r'<section id="(\w+)"', r'<figure id="([^"]+)"', r'<p class="value">([^<]*)<'):
        assert re.findall(pattern, shared) == re.findall(pattern, open_page)
    assert "have pseudonyms on this page" in shared
    assert "have pseudonyms" not in open_page
    assert "SYNTHETIC DATA" in shared
    assert re.search(r"\bP-[A-Z0-9]{8}\b", shared)


def test_pseudonyms_are_stable_for_a_run_and_differ_between_runs(
    folder: Path, tmp_path: Path, shared: str
) -> None:
    assert write_report(folder, name="again.html", pseudonymise=True).read_text() == shared
    names = {"TCGA-AA-0001": "P"}
    first, second = Pseudonyms(read_key(folder), names), Pseudonyms(read_key(tmp_path), names)
    assert first.of("TCGA-AA-0001", "P") == first.of("TCGA-AA-0001", "P")
    assert first.of("TCGA-AA-0001", "P") != second.of("TCGA-AA-0001", "P")
    assert (tmp_path / KEY).stat().st_mode & 0o077 == 0


def test_a_damaged_key_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    read_key(tmp_path)
    (tmp_path / KEY).write_text("x")
    with pytest.raises(DataError, match="key of the pseudonyms is damaged"):
        read_key(tmp_path)


def test_short_and_numeric_names_are_replaced_where_the_text_says_what_they_are() -> None:
    hidden = Pseudonyms(b"key", {"12": "P", "7": "P", "A-1": "S", "x.svs": "F"})
    twelve, seven, slide = (hidden.of(*pair) for pair in (("12", "P"), ("7", "P"), ("A-1", "S")))
    assert (
        hidden.text("patients 12, 7 and 99 of 12 folds") == f"patients {twelve}, {seven} and 99 of 12 folds"
    )
    assert hidden.text("slide A-1 is small, n = 7") == f"slide {slide} is small, n = 7"
    table = pd.DataFrame(
        {"patient": [12, 7], "n": [12, 7], "patients": [1, 2], "note": ["12 tiles", "slide A-1"]}
    )
    changed = hidden.table(table)
    assert changed["patient"].tolist() == [twelve, seven]
    assert changed["n"].tolist() == [12, 7]
    assert changed["patients"].tolist() == [1, 2]
    assert changed["note"].tolist() == ["12 tiles", f"slide {slide}"]


def test_longer_names_win_and_parts_of_words_stay() -> None:
    hidden = Pseudonyms(b"key", {"PAT-1": "P", "PAT-1-DX1": "S", "PAT-10": "P"})
    text = hidden.text("PAT-1-DX1 PAT-10 PAT-1 PAT-1x XPAT-1")
    assert text == " ".join(
        [hidden.of("PAT-1-DX1", "S"), hidden.of("PAT-10", "P"), hidden.of("PAT-1", "P"), "PAT-1x XPAT-1"]
    )


def test_a_run_with_hostile_names_has_a_shared_page(make_run: Callable, made: type) -> None:
    hostile = "<script>1</script>\"'&"
    page = write_report(make_run(made(hostile=hostile)), pseudonymise=True).read_text()
    assert "data-failed" not in page
    assert "<script" not in page


def test_the_summary_is_short_and_without_names(folder: Path) -> None:
    path = write_report(folder, name="report-summary.html", pseudonymise=True, make=summary_page)
    html = path.read_text()
    assert re.findall(r'<section id="(\w+)"', html) == ["verdict", "classification", "limits"]
    assert html.count("<figure id=") in (1, 2)
    assert "SYN-S1" not in everything(html)
