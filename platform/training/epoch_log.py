"""Reports epochs of training: TensorBoard scalars, one folder per fold and one curve per column, and progress."""

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from equipoise.platform.progress import ProgressBar


class TensorBoard:
    """Writes the epochs that the training loop reports; use as a context manager.

    Parameters
    ----------
    folder
        ``tb/<repeat>-<fold>`` of the run folder. A fold that starts again writes a new event file beside the old one;
        TensorBoard shows the newest value of each step.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def __call__(self, row: dict[str, Any]) -> None:
        """Add one epoch: every number of the row under its column name; NaN is left out."""
        epoch = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch" and isinstance(value, int | float) and not math.isnan(value):
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()


class EpochLog:
    """Reports epochs of a fold to TensorBoard and as progress; use as a context manager.

    It opens its file at the first epoch, so that it can be sent to the process that trains the fold.

    Parameters
    ----------
    folder
        As for :class:`TensorBoard`.
    name
        ``<repeat>-<fold>``.
    epochs
        The most epochs of a training.
    """

    def __init__(self, folder: Path, name: str, epochs: int) -> None:
        self.folder = folder
        self.name = name
        self.epochs = epochs
        self._boards: dict[Path, TensorBoard] = {}
        self._bar: ProgressBar | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_boards": {}, "_bar": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
        for board in self._boards.values():
            board.__exit__(kind, error, trace)

    def __call__(self, row: dict[str, float]) -> None:
        """Report one row of the training history; every member of an ensemble has curves of its own."""
        folder = self.folder / f"member-{int(row['member']) + 1}" if "member" in row else self.folder
        if folder not in self._boards:
            self._boards[folder] = TensorBoard(folder)
        self._boards[folder](row)
        epoch = int(row["epoch"])
        if self._bar is None:
            self._bar = ProgressBar(f"train fold={self.name}", self.epochs, unit="epochs")
            self._bar.__enter__()
        shown = {key: row[key] for key in ("member", "monitor", "lr") if key in row}
        self._bar.update(epoch, " ".join(f"{key}={value:.4g}" for key, value in shown.items()))
