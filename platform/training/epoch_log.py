"""Reports epochs of training: TensorBoard scalars, one folder per fold and one curve per column, and log lines."""

import logging
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("equipoise")


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
    """Reports epochs of a fold to TensorBoard and the log; use as a context manager.

    It opens its file at the first epoch, so that it can be sent to the process that trains the fold.

    Parameters
    ----------
    folder
        As for :class:`TensorBoard`.
    name
        ``<repeat>-<fold>``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._boards: dict[Path, TensorBoard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "name": self.name, "_boards": {}}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for board in self._boards.values():
            board.__exit__(kind, error, trace)

    def __call__(self, row: dict[str, float]) -> None:
        """Report one row of the training history; every member of an ensemble has curves of its own."""
        folder = self.folder / f"member-{int(row['member']) + 1}" if "member" in row else self.folder
        if folder not in self._boards:
            self._boards[folder] = TensorBoard(folder)
        self._boards[folder](row)
        shown = {
            key: value
            for key, value in row.items()
            if not key.startswith(("weight/", "loss_weight/", "cosine/"))
        }
        text = " ".join(f"{key}={value:.4g}" for key, value in shown.items())
        log.info("train fold=%s %s", self.name, text)
