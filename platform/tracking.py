"""TensorBoard scalars of a run: one folder per fold, one curve per column of its history."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self


class TensorBoard:
    """Writes what the training loop reports; use as a context manager.

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
        """Add one epoch: every number of the row under its own name."""
        epoch = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, epoch)
