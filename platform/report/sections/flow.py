"""Participant flow, Table 1, labels that are used and lost, and the list of exclusions."""

from typing import Any

import pandas as pd

from equipoise.platform.evaluation.survival import median_follow_up
from equipoise.platform.report.blocks import Block, Cell, Drawing, Drawings, Heading, Section, Table, Text
from equipoise.platform.report.drawings import Stage, flow_diagram
from equipoise.platform.report.entries import FlowParams
from equipoise.platform.report.formatting import count, number, percent, plural
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.style import Download

#: Maximum number of cohorts with one diagram each; with more cohorts there is one diagram per role.
_MOST = 6


def build(run: RunFiles, params: FlowParams) -> Section:
    """Patients of the study, and exclusions with their reasons."""
    blocks: list[Block] = []
    blocks += run.missing("manifest/flow.json", "manifest/patients.parquet", "manifest/exclusions.csv")
    if run.flow:
        blocks.append(_diagrams(run))
    if run.patients is not None and len(run.patients):
        blocks += [Heading("Patients"), table_one(run, run.patients)]
    if run.labels:
        blocks += _label_accounts(run.labels)
    if run.exclusions is not None and run.excluded is not None:
        blocks += _exclusions(run.excluded, run.exclusions, params.exclusions)
    if run.notes:
        remarks = [[note] for note in run.notes]
        blocks += [Heading("Remarks on the tables"), Table(["Remark"], remarks, folded=True)]
    return Section("Participants", _lead(run), blocks)


def _lead(run: RunFiles) -> str:
    if run.patients is None:
        return "Patients and slides of the study."
    roles = run.patients["role"].value_counts()
    develop, external = int(roles.get("develop", 0)), int(roles.get("external", 0))
    lead = f"{plural(develop, 'patient')} to develop and cross-validate the model"
    lead += f", {count(external)} of external cohorts to test it." if external else "; no external cohort."
    dropped = 0 if run.excluded is None else len(run.excluded)
    if not dropped:
        return lead
    return f"{lead} {plural(dropped, 'exclusion')}, {'each ' if dropped > 1 else ''}with its reason."


def _diagrams(run: RunFiles) -> Drawings:
    flow = pd.DataFrame(run.flow)
    cohorts = list(dict.fromkeys(flow["cohort"]))
    groups = {str(c): [c] for c in cohorts}
    if len(cohorts) > _MOST and run.patients is not None:
        of_role = run.patients.drop_duplicates("cohort").set_index("cohort")["role"]
        groups = {}
        for cohort in cohorts:
            groups.setdefault(f"{of_role.get(cohort, 'develop')} cohorts", []).append(cohort)
    drawings = []
    for name, of_group in groups.items():
        stages = _stages(flow[flow["cohort"].isin(of_group)], run.excluded, of_group)
        drawings.append(Drawing(name, flow_diagram(name, stages)))
    return Drawings(
        drawings,
        how_to_read="From top to bottom, each box shows the patients and slides that remain; losses are to the right, "
        "with their reasons in the exclusions below. Stages without losses are not drawn; the last box is the input of "
        "the model.",
        download=Download("participant-flow.csv", flow),
    )


def _stages(flow: pd.DataFrame, exclusions: pd.DataFrame | None, cohorts: list[str]) -> list[Stage]:
    """Stages summed over the given cohorts, with losses against the stage before."""
    sums = flow.groupby("stage", sort=False)[[c for c in ("patients", "slides") if c in flow]].sum(
        min_count=1
    )
    if "slides" in sums and not sums["slides"].any():
        sums = sums.drop(columns="slides")  # a study without slide tables counts patients only
    stages: list[Stage] = []
    for name, row in sums.iterrows():
        slides = None if pd.isna(row.get("slides")) else int(row["slides"])
        patients = int(row["patients"])
        before = stages[-1] if stages else None
        lost_slides = 0
        if before is not None and slides is not None and before.slides is not None:
            lost_slides = before.slides - slides
        stages.append(
            Stage(
                name=str(name),
                patients=patients,
                slides=slides,
                lost_patients=before.patients - patients if before else 0,
                lost_slides=lost_slides,
                reasons=_reasons(exclusions, cohorts, str(name)),
            )
        )
    return stages


def _reasons(exclusions: pd.DataFrame | None, cohorts: list[str], stage: str) -> tuple[tuple[str, int], ...]:
    if exclusions is None:
        return ()
    rows = exclusions[exclusions["cohort"].isin(cohorts) & (exclusions["stage"] == stage)]
    # Slides that are excluded with their patient would repeat the patient's reason.
    rows = rows[~rows["reason"].str.startswith("its patient is left out")]
    return tuple((str(reason), int(n)) for reason, n in rows["reason"].value_counts().items())


def table_one(run: RunFiles, patients: pd.DataFrame) -> Table:
    """Variables down, cohorts across."""
    cohorts = list(dict.fromkeys(patients["cohort"]))
    parts = [patients, *[patients[patients["cohort"] == c] for c in cohorts]]
    role = patients.drop_duplicates("cohort").set_index("cohort")["role"]
    columns = ["", "All", *[f"{c} ({role[c]})" for c in cohorts]]
    rows: list[list[str | Cell]] = [
        ["Patients", *[count(len(p)) for p in parts]],
        ["Sites", *[count(p["site"].nunique()) for p in parts]],
        ["Largest site", *[_largest_site(p) for p in parts]],
    ]
    if (used := run.used_slides) is not None:
        inside = [used[used["patient"].isin(p["patient"])] for p in parts]
        rows.append(["Slides used", *[count(len(s)) for s in inside]])
    for task in run.tasks:
        rows.append([Cell(task.name, note=_meaning(task)), *[_labels(p, task) for p in parts]])
    return Table(
        columns,
        rows,
        caption="Labels among the patients of the study; missing labels are counted and never imputed.",
        numeric=frozenset(range(1, len(columns))),
        download=Download("table-one.csv", _as_text(columns, rows)),
    )


def _meaning(task: Task) -> str:
    return {
        "binary": "positive / labelled",
        "multiclass": "labelled, by class",
        "regression": "mean ± sd, labelled",
        "survival": "events / patients, median follow-up",
    }.get(task.kind, "")


def _labels(part: pd.DataFrame, task: Task) -> Cell:
    """One cell of Table 1: summary of the labels of a task in a cohort."""
    classes = ""
    if task.kind == "survival":
        columns = [f"{task.name}.time", f"{task.name}.event"]
        if not set(columns) <= set(part):
            return Cell("–", tone="muted")
        known = part[columns].dropna()
        follow = median_follow_up(known[columns[0]], known[columns[1]]) if len(known) else float("nan")
        years = "" if follow != follow else f", {number(follow / 365.25, 1)} years"
        text = f"{count(known[columns[1]].sum())} / {count(len(known))}{years}"
    else:
        if task.name not in part:
            return Cell("–", tone="muted")
        known = pd.to_numeric(part[task.name], errors="coerce").dropna()
        if task.kind == "binary":
            share = f" ({percent(known.mean())})" if len(known) else ""
            text = f"{count(known.sum())} / {count(len(known))}{share}"
        elif task.kind == "multiclass":
            sizes = known.astype(int).value_counts().sort_index()
            text = count(len(known))
            classes = ", ".join(f"{_class_name(task, k)}: {count(n)}" for k, n in sizes.items())
        else:
            spread = f"{number(known.mean(), 2)} ± {number(known.std(), 2)}, " if len(known) > 1 else ""
            text = f"{spread}{count(len(known))}"
    unlabelled = len(part) - len(known)
    notes = [classes] if classes else []
    notes += [f"{count(unlabelled)} without label"] if unlabelled else []
    return Cell(text, note="; ".join(notes))


def _class_name(task: Task, number: int) -> str:
    return task.classes[number] if number < len(task.classes) else str(number)


def _largest_site(part: pd.DataFrame) -> str:
    if part.empty:
        return "–"
    sizes = part["site"].value_counts()
    return f"{sizes.index[0]} ({percent(sizes.iloc[0] / len(part))})"


def _label_accounts(labels: list[dict[str, Any]]) -> list[Block]:
    """One row per task, cohort and reason; what the table has something for comes with examples."""
    rows: list[list[str | Cell]] = []
    for account in labels:
        share = f"{count(account['usable'])} of {count(account['patients'])}"
        losses = account["losses"] or [{"reason": "", "patients": 0, "expected": True, "examples": []}]
        for k, loss in enumerate(losses):
            first = [account["task"], account["cohort"], share] if k == 0 else ["", "", ""]
            shown = [] if loss["expected"] else loss["examples"]
            lost = count(loss["patients"]) if loss["reason"] else "0"
            rows.append([*first, lost, loss["reason"] or "–", "; ".join(shown)])
    columns = ["Task", "Cohort", "With a label", "Without", "Reason", "Examples"]
    table = Table(
        columns,
        rows,
        caption="Labels of all patients who have the inputs of the model. Examples are given where the table has a "
        "value that is not a usable label; the other missing labels are empty cells, or values that the study leaves "
        "out. Every missing label is a row of the exclusions.",
        numeric=frozenset([3]),
        download=Download("labels.csv", _as_text(columns, rows)),
    )
    return [Heading("Labels"), table]


def _exclusions(excluded: pd.DataFrame, everything: pd.DataFrame, most: int) -> list[Block]:
    """Whole patients and slides by reason, then every row, missing labels of patients who stay included."""
    if everything.empty:
        return [Heading("Exclusions"), Text("No patient or slide was excluded.")]
    blocks: list[Block] = [Heading("Exclusions")]
    if excluded.empty:
        blocks.append(Text("No patient or slide was excluded; some patients lack the label of a task."))
    else:
        counts = excluded.groupby(["cohort", "stage", "reason"], sort=False).size()
        rows = [[str(c), str(s), str(r), count(int(n))] for (c, s, r), n in counts.items()]
        blocks.append(
            Table(
                ["Cohort", "Stage", "Reason", "Rows"],
                rows[:most],
                numeric=frozenset([3]),
                caption=_left_out(rows, most),
            )
        )
    shown = everything.head(most)
    full = Table(
        ["Cohort", "Patient", "Slide", "Task", "Stage", "Reason"],
        shown[["cohort", "patient", "slide", "task", "stage", "reason"]].astype(str).to_numpy().tolist(),
        caption="Every exclusion. A row with a task leaves the patient out of that task only. "
        + _left_out(everything, most),
        download=Download("exclusions.csv", shown),
        folded=True,
    )
    return [*blocks, full]


def _left_out(rows: "list | pd.DataFrame", most: int) -> str:
    more = len(rows) - most
    return f"{count(more)} more rows are in manifest/exclusions.csv." if more > 0 else ""


def _as_text(columns: list[str], rows: list[list[str | Cell]]) -> pd.DataFrame:
    plain = [
        [row[0].text if isinstance(row[0], Cell) else row[0], *[_with_note(c) for c in row[1:]]]
        for row in rows
    ]
    return pd.DataFrame(plain, columns=[columns[0] or "variable", *columns[1:]])


def _with_note(cell: str | Cell) -> str:
    """Text and second line of a cell as one text."""
    if isinstance(cell, str):
        return cell
    return "; ".join(part for part in (cell.text, cell.note) if part)
