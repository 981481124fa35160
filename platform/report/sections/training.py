"""Training: losses over the epochs and the epoch that was kept."""

import pandas as pd

from equipoise.platform.report.blocks import Block, Cell, Figures, Section, Table, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.figures.quality import loss_curves, monitor_curves
from equipoise.platform.report.figures.style import Figure
from equipoise.platform.report.formatting import count, number
from equipoise.platform.report.run_files import RunFiles


def build(run: RunFiles, params: SectionParams) -> Section:
    """Curves of all folds: the main task's loss, and what early stopping watches."""
    blocks: list[Block] = [*run.missing("folds")]
    if run.histories:
        figures = [_losses(run), monitor_curves(run.histories)]
        if drawn := [f for f in figures if f is not None]:
            blocks.append(Figures(drawn))
        blocks.append(_table(run.histories))
    elif not blocks:
        blocks.append(Text("No fold has written its history yet.", tone="muted"))
    return Section("Training", _lead(run), blocks)


def _lead(run: RunFiles) -> str:
    kind = (run.study.get("model") or {}).get("kind")
    return f"Model {kind}: how its folds were fitted." if kind else "How the folds were fitted."


def _losses(run: RunFiles) -> Figure | None:
    """The total loss where it is written, else the main task's."""
    if any("train_loss" in table for table in run.histories.values()):
        return loss_curves(run.histories, "train_loss", "val_loss", "all tasks")
    if not run.tasks:
        return None
    main = run.tasks[0].name
    return loss_curves(run.histories, f"train/{main}", f"val/{main}", main)


def _table(histories: dict[str, pd.DataFrame]) -> Table:
    """Epochs and the lowest watched loss per fold."""
    rows: list[list[str | Cell]] = []
    for fold, table in histories.items():
        watched = table.get("monitor", table.get("val_loss"))
        if watched is None or watched.isna().all():
            rows.append([fold, count(len(table)), "–", "–"])
            continue
        best = int(watched.idxmin())
        rows.append([fold, count(len(table)), count(table["epoch"].loc[best]), number(watched.loc[best])])
    return Table(
        ["Fold", "Epochs", "Epoch kept", "Validation loss there"], rows, numeric=frozenset([1, 2, 3])
    )
