"""``equipoise doctor``: is this machine ready?"""

from enum import StrEnum
from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


class Profile(StrEnum):
    """What the machine is meant for."""

    cpu = "cpu"
    gpu = "gpu"
    cluster = "cluster"


@plain_job
def doctor(
    profile: Annotated[
        Profile, typer.Option("--profile", help="What the machine is meant for.")
    ] = Profile.cpu,
) -> dict[str, Any]:
    """Check this machine: PASS, WARN or FAIL, each with a fix."""
    from equipoise.platform.cluster.doctor import checks
    from equipoise.platform.errors import ResourceError

    results = checks(profile.value)
    width = max(len(check.name) for check in results)
    for check in results:
        print(f"{check.status:<4}  {check.name:<{width}}  {check.detail}")
        if check.status != "PASS" and check.fix:
            print(f"      {'':<{width}}  fix: {check.fix}")
    failed = [check.name for check in results if check.status == "FAIL"]
    if failed:
        raise ResourceError(
            f"{len(failed)} checks failed: {', '.join(failed)}", fix="see the fix lines above"
        )
    return {"checks": len(results), "warnings": sum(check.status == "WARN" for check in results)}


command = doctor

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("doctor")
