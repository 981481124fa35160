"""``equipoise store``: list, verify, clean, rebuild, export and import feature stores."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


class Action(StrEnum):
    """What to do with stores."""

    ls = "ls"
    verify = "verify"
    gc = "gc"
    rebuild = "rebuild"
    export = "export"
    import_ = "import"


class Format(StrEnum):
    """Layout of ``.h5`` files."""

    stamp = "stamp"
    trident = "trident"


@plain_job
def store(
    action: Annotated[Action, typer.Argument(help="ls, verify, gc, rebuild, export or import.")],
    folder: Annotated[
        str,
        typer.Argument(help="A store or a folder of stores; import: a folder of .h5 files.", metavar="DIR"),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="gc: list the files and remove nothing.")
    ] = False,
    layout: Annotated[
        Format | None, typer.Option("--format", help="export, import: layout of the .h5 files.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "-o", "--out", help="export: folder for files; import: folder of stores.", metavar="DIR"
        ),
    ] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", help="import: encoder of the features.")] = None,
    mpp: Annotated[float | None, typer.Option("--mpp", help="import: um/px, if the files lack it.")] = None,
    px: Annotated[
        int | None, typer.Option("--px", help="import: tile side in px, if the files lack it.")
    ] = None,
) -> dict[str, Any]:
    """List, verify, clean, rebuild, export and import feature stores."""
    from pathlib import Path

    from equipoise.datasets.remote.addresses import is_remote
    from equipoise.platform.errors import StudyError
    from equipoise.platform.extraction import maintenance

    if is_remote(folder) or is_remote(out or ""):
        raise StudyError(
            "works on folders of this machine, not on addresses",
            where="command line",
            fix="copy the store here, for instance with `aws s3 sync` or `gcloud storage rsync`",
        )
    path = Path(folder)
    if action is Action.ls:
        return maintenance.list_stores(path)
    if action is Action.verify:
        return maintenance.verify_stores(path)
    if action is Action.gc:
        return maintenance.clean_stores(path, dry_run)
    if action is Action.rebuild:
        return maintenance.rebuild_stores(path)
    given = {"--format": layout, "--out": out} | ({"--encoder": encoder} if action is Action.import_ else {})
    maintenance.require_options(action.value, given)
    kind, target = str(layout), Path(str(out))
    if action is Action.export:
        return maintenance.export_store(path, kind, target)
    return maintenance.import_store(path, kind, target, str(encoder), mpp, px)


command = store

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("store")
