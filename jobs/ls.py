"""``equipoise ls``: the entries of the registries."""

from typing import Annotated

import typer

from equipoise.jobs.options import plain_job


@plain_job
def ls(
    kind: Annotated[
        str | None, typer.Argument(help="Kind of entry; without one, all kinds are listed.")
    ] = None,
) -> None:
    """List the registries: models, encoders, splits, sites, cohorts, templates, …"""
    from equipoise.platform.registry import EARLIER_KINDS, KINDS, entries

    for name in [kind] if kind else KINDS:
        rows = entries(name)
        width = max(map(len, rows), default=0)
        print(f"{EARLIER_KINDS.get(name, name)} ({len(rows)})")
        for entry in rows.values():
            print(f"  {entry.name:<{width}}  {entry.summary}")
            if kind:
                for parameter, field in entry.params.model_fields.items():
                    note = f": {field.description}" if field.description else ""
                    default = (
                        "(required)"
                        if field.is_required()
                        else f"= {field.get_default(call_default_factory=True)!r}"
                    )
                    print(f"  {'':<{width}}    {parameter} {default}{note}")


command = ls

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("ls")
