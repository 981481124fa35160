"""Training: losses over the epochs, the epoch that was kept, and those that other monitors would have kept."""

import pandas as pd

from equipoise.platform.report.blocks import Block, Cell, Figures, Heading, Notice, Section, Table, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import count, number
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.style import (
    EXTERNAL,
    INTERNAL,
    SERIES,
    Figure,
    fade,
    layout,
    line,
    slug,
    text,
)

#: Columns of the history that describe an epoch on scales of their own.
_METRIC, _LOSS = "monitor/mean_metric", "monitor/mean_loss"


def build(run: RunFiles, params: SectionParams) -> Section:
    """Curves of all folds: the loss of the main task, and the value that early stopping monitors."""
    blocks: list[Block] = [*run.missing("folds")]
    if run.convergence_warnings:
        blocks.append(Notice("Fits that may not have converged", run.convergence_warnings))
    if exact := [fold for fold, record in run.fold_records.items() if record.get("exact")]:
        blocks.append(_penalties({fold: run.histories[fold] for fold in exact if fold in run.histories}))
    blocks += _optimum(run)
    curves = {fold: table for fold, table in run.histories.items() if fold not in exact}
    if curves:
        figures = [_losses(run), monitor_curves(curves)]
        if shown := [f for f in figures if f is not None]:
            blocks.append(Figures(shown))
        blocks.append(_table(curves))
        if sensitivity := monitor_sensitivity(curves):
            blocks += [Heading("Sensitivity to the early-stopping monitor"), sensitivity]
    elif not run.histories and not blocks:
        blocks.append(Text("No fold has written its history yet.", tone="muted"))
    return Section("Training", _lead(run), blocks)


def _lead(run: RunFiles) -> str:
    kind = (run.study.get("model") or {}).get("kind")
    return (
        f"How the model ({kind}) was trained in each fold."
        if kind
        else "How the model was trained in each fold."
    )


def _penalties(histories: dict[str, pd.DataFrame]) -> Table:
    """Penalties of folds that a solver fitted."""
    rows: list[list[str | Cell]] = []
    parts = ("penalty", "weight", "gain", "train", "val")
    for fold, table in histories.items():
        row = table.iloc[0]
        names = [c.partition("/")[2] for c in table if c.startswith(("penalty/", "gain/"))]
        for name in dict.fromkeys(names):
            keys = [f"{part}/{name}" for part in parts]
            rows.append([fold, name, *(number(row[key], 4) if key in row else "–" for key in keys)])
    late = any(column.startswith("weight/") for table in histories.values() for column in table)
    headers = ["Fold", "Task", "Penalty", "Weight", "Gain", "Training loss", "Validation loss"]
    caption = (
        "The model is linear: a solver found its optimum, at the penalty that inner cross-validation on the training "
        "patients chose. Gain: how much lower the cross-validated loss is than that of a model without any column."
    )
    if late:
        caption += (
            " Every modality of a task has a model of its own; weight: of its outputs, in standard deviations, in the "
            "sum for patients who have all modalities."
        )
    else:
        headers.remove("Weight")
        rows = [[*row[:3], *row[4:]] for row in rows]
    return Table(headers, rows, caption, numeric=frozenset(range(2, len(headers))))


def _optimum(run: RunFiles) -> list[Block]:
    """How far linear models that were trained by epochs stayed from their optimum."""
    rows: list[list[str | Cell]] = [
        [fold, task, *(number(distance[key], 4) for key in ("objective", "train", "val"))]
        for fold, record in run.fold_records.items()
        for task, distance in (record.get("optimum") or {}).items()
    ]
    if not rows:
        return []
    caption = (
        "The model is linear, so that every task has one optimum, which training by epochs may miss. Objective: "
        "training loss and ridge penalty (chosen by inner cross-validation) above the least possible. Losses: those of "
        "the trained model minus those of the optimum; a negative validation loss is better than the optimum's."
    )
    headers = ["Fold", "Task", "Objective above the optimum", "Training loss", "Validation loss"]
    return [Heading("Distance from the optimum"), Table(headers, rows, caption, numeric=frozenset([2, 3, 4]))]


def _losses(run: RunFiles) -> Figure | None:
    """The total loss if it was recorded, else the loss of the main task."""
    if any("train_loss" in table for table in run.histories.values()):
        return loss_curves(run.histories, "train_loss", "val_loss", "all tasks")
    if not run.tasks:
        return None
    main = run.tasks[0].name
    return loss_curves(run.histories, f"train/{main}", f"val/{main}", main)


def _table(histories: dict[str, pd.DataFrame]) -> Table:
    """Epochs and the lowest monitored value per fold."""
    rows: list[list[str | Cell]] = []
    for fold, table in histories.items():
        monitored = table.get("monitor", table.get("val_loss"))
        if monitored is None or monitored.isna().all():
            rows.append([fold, count(len(table)), "–", "–"])
            continue
        best = best_epoch(table, str(monitored.name))
        rows.append([fold, count(len(table)), count(table["epoch"].loc[best]), number(monitored.loc[best])])
    return Table(
        ["Fold", "Epochs", "Epoch kept", "Monitored value at that epoch"], rows, numeric=frozenset([1, 2, 3])
    )


def best_epoch(table: pd.DataFrame, monitor: str) -> int:
    """Row of the epoch that a column of the history chooses: its smallest value, then the smallest relative loss."""
    by = [monitor, *([_LOSS] if _LOSS in table and monitor != _LOSS else [])]
    order = table[table[monitor].notna()].sort_values(by, na_position="first", kind="stable")
    return int(order.index[0])


def monitor_sensitivity(histories: dict[str, pd.DataFrame]) -> Table | None:
    """The epoch that every monitor would have kept in each fold, and what the validation patients say there.

    Training ended where the study's own monitor ran out of patience: another one might have gone on.
    """
    rows: list[list[str | Cell]] = []
    names = dict.fromkeys(c for table in histories.values() for c in table if c.startswith("monitor/"))
    for name in names:
        kept = [
            (table, best_epoch(table, name))
            for table in histories.values()
            if name in table and table[name].notna().any()
        ]
        if not kept:
            continue
        own = sum(best == best_epoch(table, "monitor") for table, best in kept)
        epochs = ", ".join(count(table["epoch"].loc[best]) for table, best in kept)
        metric, loss = (_mean_at(kept, column) for column in (_METRIC, _LOSS))
        rows.append(
            [
                name.removeprefix("monitor/"),
                epochs,
                f"{own} of {len(kept)}",
                "–" if metric is None else number(1 - metric),
                "–" if loss is None else number(loss),
            ]
        )
    if not rows:
        return None
    columns = [
        "Monitor",
        "Epoch kept in each fold",
        "Same epoch as this run",
        "Mean metric (0 to 1) on validation",
        "Loss relative to a constant prediction",
    ]
    return Table(columns, rows, numeric=frozenset([2, 3, 4]))


def _mean_at(kept: list[tuple[pd.DataFrame, int]], column: str) -> float | None:
    values = [table[column].loc[best] for table, best in kept if column in table]
    known = [float(value) for value in values if value == value]
    return sum(known) / len(known) if known else None


def loss_curves(histories: dict[str, pd.DataFrame], train: str, val: str, what: str) -> Figure | None:
    """Training and validation loss per fold over the epochs.

    Parameters
    ----------
    histories
        Fold name → table with ``epoch`` and the two columns.
    train, val
        Names of the columns.
    what
        Task that the loss belongs to, or "all tasks".
    """
    data = []
    for column, name, colour in ((train, "training", INTERNAL), (val, "inner validation", EXTERNAL)):
        first = True
        for fold, table in histories.items():
            if column in table and table[column].notna().any():
                hover = f"fold {text(fold)}, epoch %{{x}}<br>{name} loss %{{y:.3f}}<extra></extra>"
                trace = line(table["epoch"], table[column], name, fade(colour, 0.6), 1.5, hovertemplate=hover)
                data.append({**trace, "legendgroup": name, "showlegend": first})
                first = False
    if not data:
        return None
    return Figure(
        slug("loss", what),
        f"Loss of {what} over the epochs",
        data,
        layout("Epoch", "Loss"),
        "One line per fold. Training loss that falls while validation loss rises is overfitting; the epoch "
        "kept is chosen on the inner validation patients, who belong to neither the training nor the test part.",
        _history_table(histories),
        height=330,
    )


def monitor_curves(histories: dict[str, pd.DataFrame]) -> Figure | None:
    """The value that early stopping monitors, per fold, with the epoch that was kept."""
    data = []
    for index, (fold, table) in enumerate(histories.items()):
        if "monitor" not in table or table["monitor"].isna().all():
            continue
        colour = SERIES[index % len(SERIES)]
        hover = f"fold {text(fold)}, epoch %{{x}}: %{{y:.3f}}<extra></extra>"
        name = f"fold {text(fold)}"
        data.append(line(table["epoch"], table["monitor"], name, colour, 1.6, hovertemplate=hover))
        best = table.loc[best_epoch(table, "monitor")]
        marker = {"color": colour, "size": 9, "symbol": "circle-open", "line": {"width": 2}}
        data.append({"type": "scatter", "mode": "markers", "x": [best["epoch"]], "y": [best["monitor"]],
                     "marker": marker, "showlegend": False, "hovertemplate": hover})  # fmt: skip
    if not data:
        return None
    return Figure(
        "monitor",
        "Value monitored by early stopping",
        data,
        layout("Epoch", "Monitored value, smaller is better"),
        "One line per fold, over the inner validation patients; the circle is the minimum, the epoch "
        "whose weights were kept. If folds stop at very different epochs, when training ends is partly chance.",
        _history_table(histories),
        height=330,
    )


def _history_table(histories: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([t.assign(fold=f) for f, t in histories.items()], ignore_index=True)
