"""``equipoise store``: what feature stores hold, whether they are sound, what they can do without."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


class Action(StrEnum):
    """What to do with stores."""

    ls = "ls"
    verify = "verify"
    gc = "gc"
    export = "export"
    take = "import"


class Format(StrEnum):
    """Whose ``.h5`` files."""

    stamp = "stamp"
    trident = "trident"


@plain_job
def store(
    action: Annotated[Action, typer.Argument(help="ls, verify, gc, export or import.")],
    folder: Annotated[
        str,
        typer.Argument(help="A store or a folder of stores; import: a folder of .h5 files.", metavar="DIR"),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="gc: only say what would go.")] = False,
    layout: Annotated[
        Format | None, typer.Option("--format", help="export, import: whose .h5 files.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "-o", "--out", help="export: folder for files; import: folder of stores.", metavar="DIR"
        ),
    ] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", help="import: what made the features.")] = None,
    mpp: Annotated[
        float | None, typer.Option("--mpp", help="import: um/px, if the files do not say.")
    ] = None,
    px: Annotated[
        int | None, typer.Option("--px", help="import: side in px, if the files do not say.")
    ] = None,
) -> dict[str, Any]:
    """List, verify, clean, export and import feature stores."""
    from pathlib import Path

    from equipoise.datasets.remote.addresses import is_remote
    from equipoise.platform.errors import StudyError
    from equipoise.platform.extraction import upkeep

    if is_remote(folder) or is_remote(out or ""):
        raise StudyError(
            "works on folders of this machine, not on addresses",
            where="command line",
            fix="copy the store here, for instance with `aws s3 sync` or `gcloud storage rsync`",
        )
    place = Path(folder)
    if action is Action.ls:
        return upkeep.show(place)
    if action is Action.verify:
        return upkeep.verify(place)
    if action is Action.gc:
        return upkeep.clean(place, dry_run)
    given = {"--format": layout, "--out": out} | ({"--encoder": encoder} if action is Action.take else {})
    upkeep.require(action.value, given)
    kind, target = str(layout), Path(str(out))
    if action is Action.export:
        return upkeep.export(place, kind, target)
    return upkeep.take(place, kind, target, str(encoder), mpp, px)


command = store

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("store")
