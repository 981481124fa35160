"""One self-contained HTML page from the files of a run folder.

The page loads nothing and runs nothing: styles, pictures, figures (SVG) and data are inline, it has no script, and a
content security policy forbids the browser to fetch anything or to run any. All text is escaped by jinja2; a patient
called ``<script>`` is shown as such.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from equipoise import __version__
from equipoise.platform.errors import DataError
from equipoise.platform.registry import Entry, entries
from equipoise.platform.report.blocks import Block, Figures, Notice, Section, Table
from equipoise.platform.report.charts import chart
from equipoise.platform.report.formatting import count, number, plural
from equipoise.platform.report.glossary import terms_in
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.style import Figure, colour_variables

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
#: A larger page causes a warning: a report should be small enough to be mailed.
MAX_BYTES = 6_000_000
#: Rows of a figure's data that the page shows; the CSV file has all.
_ROWS = 15


@dataclass(frozen=True)
class PageSection:
    """A section with its id, as the template needs it."""

    id: str
    title: str
    lead: str
    blocks: tuple[Block, ...]
    failed: bool = False


@dataclass(frozen=True)
class Page:
    """A page: title, metadata and sections; a ``remark`` stands above all of it.

    A ``compact`` page is printed small.
    """

    title: str
    synthetic: bool
    version: str
    meta: tuple[tuple[str, str], ...]
    sections: tuple[PageSection, ...]
    kicker: str = "Equipoise study report"
    remark: str = ""
    compact: bool = False


#: Said above a page without names.
_PSEUDONYMOUS = (
    "Patients, slides, files and machines have pseudonyms on this page. Their key stays in the run folder. Cohorts, "
    "sites and pictures of tissue are shown as they are."
)


def write_report(
    run_folder: Path,
    *,
    name: str = "report.html",
    pseudonymise: bool = False,
    make: Callable[[RunFiles], "Page"] | None = None,
) -> Path:
    """Render the page of a run folder and return its path.

    Missing or broken files are named in their section with the command that creates them.

    Parameters
    ----------
    name
        Name of the file in the run folder.
    pseudonymise
        Whether names of patients, slides, files and machines are replaced.
    make
        What makes the page; default: :func:`report_page`.

    Raises
    ------
    DataError
        If there is no such folder.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise DataError("there is no such run folder", where=str(folder), fix="run 'equipoise run' first")
    make = make or report_page
    if not pseudonymise:
        return write_page(make(RunFiles(folder)), folder / name)
    from equipoise.platform.report.pseudonyms import PseudonymousRun

    run = PseudonymousRun(folder)
    page: Page = run.pseudonyms.anything(replace(make(run), remark=_PSEUDONYMOUS))
    return write_page(page, folder / name)


def write_page(page: Page, path: Path) -> Path:
    """Write a page and say so if it is too large to be mailed."""
    from equipoise.datasets.atomic_io import write_text

    html = render_page(page)
    size = len(html.encode())
    if size > MAX_BYTES:
        log.warning("report size=%d bytes is above %d", size, MAX_BYTES)
    write_text(path, html)
    return path


def render(run: RunFiles) -> str:
    """The page as text."""
    return render_page(report_page(run))


def report_page(run: RunFiles) -> Page:
    """The page of a run as blocks."""
    parts = tuple(part for entry in entries("sections").values() if (part := _part(entry, run)))
    if terms := terms_in(" ".join(_words(parts))):
        parts += (_glossary(terms),)
    return Page(
        title=_title(run),
        synthetic=run.synthetic,
        version=installed_version(run),
        meta=tuple(_meta(run)),
        sections=parts,
    )


def _glossary(terms: dict[str, str]) -> PageSection:
    table = Table(
        ["Term", "Meaning"], [[term, meaning] for term, meaning in sorted(terms.items(), key=_by_letter)]
    )
    return PageSection("glossary", "Glossary", "Terms of this page in a sentence each.", (table,))


def _by_letter(term: tuple[str, str]) -> str:
    return term[0].casefold()


def _words(value: Any) -> Iterator[str]:
    """All texts of sections, without their data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _words(held)
    elif is_dataclass(value):
        for part in fields(value):
            if part.name not in ("table", "data", "uri", "download"):
                yield from _words(getattr(value, part.name))


@dataclass(frozen=True)
class Drawn:
    """A figure on the page.

    ``drawings`` are pairs of a CSS class, which says on what screens a drawing is shown, and its SVG; ``uri`` is the
    file to download; ``problem`` says why there is no drawing.
    """

    id: str
    drawings: tuple[tuple[str, Markup], ...] = ()
    uri: str = ""
    problem: str = ""


def render_page(page: Page) -> str:
    """Any page of sections as text, self-contained as described above."""
    drawn = {
        id(figure): draw(figure, f"figure-{k}-{figure.slug}", synthetic=page.synthetic)
        for k, figure in enumerate(_figures(page.sections), start=1)
    }
    return (
        _environment()
        .get_template("report.html")
        .render(
            page=page,
            drawn=lambda figure: drawn[id(figure)],
            data_of=_data_of,
            colours=Markup(colour_variables()),  # noqa: S704, constants of this package
            css=Markup(_asset("templates/report.css")),  # noqa: S704, a file of this package
        )
    )


def draw(figure: Figure, prefix: str, *, synthetic: bool) -> Drawn:
    """The drawings of a figure; one that cannot be drawn says why, and the page goes on."""
    try:
        if not figure.wide:
            svg = chart.draw(figure, chart.HALF, prefix, synthetic=synthetic)
            drawings = [("half", svg)]
        else:
            svg = chart.draw(figure, chart.WHOLE, prefix, synthetic=synthetic)
            drawings = [("whole scrolled" if figure.scrolled else "whole", svg)]
            if not figure.scrolled:
                narrow = chart.draw(figure, chart.NARROW, f"{prefix}-narrow", synthetic=synthetic)
                drawings.append(("narrow", narrow))
    except Exception as error:
        # As with sections: a figure that cannot be drawn must not prevent the page; its data are shown.
        log.exception("report figure=%s failed", figure.slug)
        return Drawn(prefix, problem=f"{type(error).__name__}: {error}")
    # The charts escape all text themselves.
    marked = tuple((name, Markup(text)) for name, text in drawings)  # noqa: S704
    return Drawn(prefix, marked, chart.data_uri(chart.standalone(svg)))


def _data_of(figure: Figure) -> Table:
    """The first rows behind a figure, for readers who cannot see it."""
    shown = figure.table.head(_ROWS)
    left = len(figure.table) - len(shown)
    rows = [[_text(value) for value in row] for row in shown.itertuples(index=False)]
    return Table(
        [str(column).replace("_", " ") for column in figure.table.columns],
        rows,
        f"The first {_ROWS} of {count(len(figure.table))} rows; the CSV file has all." if left else "",
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return number(value, 4) if value == value else "–"
    return "–" if value is None else str(value)


def _part(entry: Entry, run: RunFiles) -> PageSection | None:
    """Build a section; if it fails, the page shows the error and all other sections."""
    values = ((run.study.get("report") or {}).get("sections") or {}).get(entry.name) or {}
    try:
        section: Section | None = entry.load()(run, entry.params.model_validate(values))
    except Exception as error:
        # A report concludes hours of work: one broken section must not prevent the page.
        log.exception("report section=%s failed", entry.name)
        failure = Notice(
            f"The section {entry.name} could not be created", [f"{type(error).__name__}: {error}"], tone="bad"
        )
        return PageSection(entry.name, entry.name.capitalize(), entry.summary, (failure,), failed=True)
    if section is None:
        return None
    return PageSection(entry.name, section.title, section.lead, tuple(section.blocks))


def _figures(parts: tuple[PageSection, ...]) -> Iterator[Figure]:
    for part in parts:
        for block in part.blocks:
            if isinstance(block, Figures):
                yield from block.items


def _title(run: RunFiles) -> str:
    report = run.study.get("report") or {}
    return str(report.get("title") or run.study.get("name") or run.folder.resolve().name)


def _meta(run: RunFiles) -> Iterator[tuple[str, str]]:
    """Metadata of the run for the head of the page."""
    study, environment = run.study, run.environment
    if name := study.get("name"):
        yield "Study", str(name)
    if run.patients is not None:
        cohorts = run.patients["cohort"].nunique()
        yield "Patients", f"{count(len(run.patients))} in {plural(cohorts, 'cohort')}"
    if run.tasks:
        yield "Tasks", count(len(run.tasks))
    for title, section, key in (("Model", "model", "kind"), ("Features", "features", "encoder")):
        if value := (study.get(section) or {}).get(key):
            yield title, str(value)
    if study.get("seed") is not None:
        yield "Seed", str(study["seed"])
    code = environment.get("code")
    if isinstance(code, dict) and code.get("commit"):
        yield "Commit", str(code["commit"])[:12]
    if at := run.status.get("at") or _last_step(run.status):
        yield "Run", str(at).replace("T", " ")[:16]


def _last_step(status: dict[str, Any]) -> str:
    steps = status.get("steps")
    times = (
        [str(s.get("at", "")) for s in steps.values() if isinstance(s, dict)]
        if isinstance(steps, dict)
        else []
    )
    return max(times, default="")


def installed_version(run: RunFiles) -> str:
    """Version that created the run, else the installed one."""
    return str(run.environment.get("equipoise") or __version__)


@cache
def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(_HERE / "templates")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
