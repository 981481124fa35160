"""``equipoise status``: the state of a run folder."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


@plain_job
def status(
    run: Annotated[str, typer.Argument(help="Run folder or its address.", metavar="RUN")],
) -> dict[str, Any]:
    """Show progress, failures and the next command of a run."""
    from equipoise.platform.errors import StudyError
    from equipoise.platform.run.remote_folder import read_run_folder

    folder = read_run_folder(run)
    if not folder.status_file.exists():
        raise StudyError("is not a run folder: there is no status.json", where=run)
    now, writer, record, to_do = folder.state(), folder.writer(), folder.status(), folder.to_do()
    left = f"to do: {', '.join(to_do)}" if to_do else "complete"
    print(f"{folder.address}: last job {now}{f' ({writer})' if writer else ''}, {left}")
    for step in folder.steps():
        state = record["steps"].get(step, {"status": "to do"})
        if state["status"] == "running" != now:
            state = {**state, "status": "killed"}
        rest = {key: value for key, value in state.items() if key not in ("status", "at", "error")}
        print(
            f"  {step:<9} {state['status']:<8} " + " ".join(f"{key}={value}" for key, value in rest.items())
        )
        if "error" in state:
            print("    " + state["error"].replace("\n", "\n    "))
    if folder.report.exists():
        print(f"report: {folder.report}")
    if to_do and folder.command_file.exists():
        print(f"next: {folder.command_file.read_text(encoding='utf-8').strip()}   (resumes where it stopped)")
    return {"run": folder.address, "state": now, "to_do": to_do}


command = status

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("status")
