"""``equipoise report``: the run folder as one HTML page."""

from pathlib import Path
from typing import Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, study_job
from equipoise.jobs.outcome import JobResult


@study_job
def report(
    options: StudyOptions,
    runs: Annotated[
        list[str] | None, typer.Argument(help="Run folders to compare, with --compare.", metavar="RUN...")
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Compare the named runs instead, as 'equipoise leaderboard' does."),
    ] = False,
    share: Annotated[
        bool, typer.Option("--share", help="Also write report-share.html, without names.")
    ] = False,
    pseudonymise: Annotated[
        bool | None,
        typer.Option(
            "--pseudonymise/--no-pseudonymise",
            help="Pseudonyms for patients, slides, files and machines [with --share only].",
        ),
    ] = None,
    print_summary: Annotated[
        bool, typer.Option("--print-summary", help="Also write report-summary.html: two pages to print.")
    ] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> JobResult:
    """Write report.html; it reads nothing but the run folder."""
    if compare or runs:
        return _compare(runs or [], options.out, compare)
    result = options.run(options.study(), ["report"])
    if "report" not in result.fields:  # a dry run
        return result
    from equipoise.platform.report.page import write_report

    page = Path(result.fields["report"])
    hidden = share if pseudonymise is None else pseudonymise
    fields: dict[str, Any] = {}
    if hidden and not share:
        write_report(page.parent, pseudonymise=True)
    if share:
        fields["share"] = write_report(page.parent, name="report-share.html", pseudonymise=hidden)
    if print_summary:
        from equipoise.platform.report.summary import summary_page

        fields["summary"] = write_report(
            page.parent, name="report-summary.html", pseudonymise=hidden, make=summary_page
        )
    if show:
        import webbrowser

        webbrowser.open(page.as_uri())
    return JobResult({**result.fields, **fields}, result.folder)


def _compare(runs: list[str], out: str | None, asked: bool) -> JobResult:
    """The leaderboard of several runs, in the folder of ``-o``."""
    from equipoise.platform.errors import StudyError
    from equipoise.platform.report.leaderboard_datasets import compare_runs
    from equipoise.platform.run.remote_folder import run_paths

    if not asked or len(runs) < 2:
        raise StudyError(
            "run folders are named to be compared" if not asked else "a comparison needs two runs or more",
            where=" ".join(runs),
            fix="equipoise report --compare RUN RUN, or name the folder of one run with -o",
        )
    folder = Path(out or "leaderboard")
    with run_paths(runs) as paths:
        written = compare_runs(paths, folder)
    print(written.text)
    fields = {"out": folder.resolve(), "page": written.page.resolve(), "best": written.best}
    return JobResult(fields | ({"synthetic": True} if written.synthetic else {}))


command = report

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("report")
