"""What predictions rest on beside tiles: modalities, pathways and genes over patients, without naming patients."""

import numpy as np
import pandas as pd

from equipoise.platform.report.blocks import Block, Cell, Heading, Table
from equipoise.platform.report.formatting import count, number
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.style import Download

_KEYS = ["task", "class"]


def explain_tables(run: RunFiles, most: int) -> list[Block]:
    """Tables of modalities, pathways and genes; those whose file is absent are left out.

    Parameters
    ----------
    run
        The run folder.
    most
        Rows to show for a task and class; a download holds all.
    """
    return [
        *_modalities(run),
        *_names(run, "pathways.csv", "pathway", "Pathways", most),
        *_names(run, "genes.csv", "gene", "Genes", most),
    ]


def _read(run: RunFiles, name: str, columns: list[str]) -> pd.DataFrame | None:
    file = f"explain/{name}"
    table = run.read_table(file)
    if table is None or table.empty:
        return None
    if absent := [column for column in columns if column not in table]:
        run.problems[file] = f"lacks the columns {', '.join(absent)}"
        return None
    order = {task.name: at for at, task in enumerate(run.tasks)}
    return table.fillna({"class": ""}).sort_values("task", key=lambda t: t.map(order), kind="stable")


def _modalities(run: RunFiles) -> list[Block]:
    """Over the patients of a task: how far a prediction moves without a modality, and its share of contributions."""
    table = _read(run, "modalities.csv", [*_KEYS, "patient", "modality", "change", "ig_share"])
    if table is None:
        return []
    groups = table.assign(size=table["change"].abs()).groupby([*_KEYS, "modality"], sort=False)
    summary = groups.agg(
        patients=("patient", "nunique"),
        mean_change=("change", "mean"),
        mean_size_of_change=("size", "mean"),
        mean_share=("ig_share", "mean"),
    ).reset_index()
    rows: list[list[str | Cell]] = [
        [_title(row), str(row["modality"]), count(row["patients"]), number(row["mean_size_of_change"], 3),
         number(row["mean_change"], 3), _percent(row["mean_share"])]
        for row in summary.to_dict("records")
    ]  # fmt: skip
    return [
        Heading("Modalities"),
        Table(
            ["Task", "Modality", "Patients", "Size of change without it", "Mean change", "Share of contributions"],
            rows,
            caption="Change: the explained number (log odds, value or log risk) minus what the model says of the same "
            "patient without the modality. Share: of the sizes of contributions by integrated gradients. The two "
            "answer different questions and need not agree.",
            numeric=frozenset(range(2, 6)),
            download=Download("modalities.csv", summary),
        ),
    ]  # fmt: skip


def _names(run: RunFiles, file: str, column: str, title: str, most: int) -> list[Block]:
    """The names with the largest contributions for each task, over all cohorts."""
    table = _read(run, file, [*_KEYS, column, "n", "mean", "mean_abs"])
    if table is None:
        return []
    keys = [*_KEYS, *(["modality"] if "modality" in table else []), column]
    weighted = table.assign(mean=table["mean"] * table["n"], mean_abs=table["mean_abs"] * table["n"])
    summary = weighted.groupby(keys, sort=False)[["n", "mean", "mean_abs"]].sum().reset_index()
    summary[["mean", "mean_abs"]] = summary[["mean", "mean_abs"]].div(summary["n"], axis=0)
    ranked = summary.sort_values("mean_abs", ascending=False, kind="stable")
    shown = ranked.groupby(_KEYS, sort=False).head(most)
    order = {
        key: at for at, key in enumerate(dict.fromkeys(zip(summary["task"], summary["class"], strict=True)))
    }
    places = [order[key] for key in zip(shown["task"], shown["class"], strict=True)]
    shown = shown.iloc[np.argsort(places, kind="stable")]
    rows: list[list[str | Cell]] = [
        [_title(row), str(row[column]), str(row.get("modality", "")) or "–", count(row["n"]),
         number(row["mean_abs"], 3), number(row["mean"], 3)]
        for row in shown.to_dict("records")
    ]  # fmt: skip
    if "modality" not in table:
        rows = [[*row[:2], *row[3:]] for row in rows]
    middle = ["Modality"] if "modality" in table else []
    columns = ["Task", column.capitalize(), *middle, "Patients", "Mean size", "Mean"]
    caption = (
        "Contributions to the explained number, from the average patient to each patient, averaged over the patients "
        "of all cohorts."
    )
    return [
        Heading(title),
        Table(
            columns,
            rows,
            caption=caption
            + (f" The {count(most)} largest of each task." if len(shown) < len(summary) else ""),
            numeric=frozenset(range(len(columns) - 3, len(columns))),
            download=Download(file, ranked),
        ),
    ]


def _title(row: dict) -> str:
    return f"{row['task']}: {row['class']}" if row["class"] else str(row["task"])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "–"
