"""Cases that stay in the process: trial after trial reads the same patients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.datasets.cases import Case


class RememberedCases(Mapping[str, "Case"]):
    """A mapping that keeps the cases it was asked for.

    A bag of one slide stays the store's memory map, one physical copy for all processes of a node: what is kept is
    its place, labels and tables. Bags of several slides are copies and are read again each time.

    Parameters
    ----------
    cases
        Where cases come from; sent to other processes without what is kept here.
    """

    def __init__(self, cases: Mapping[str, Case]) -> None:
        self.source = cases
        self._kept: dict[str, Case] = {}

    def __getitem__(self, patient: str) -> Case:
        """The case of a patient."""
        if (kept := self._kept.get(patient)) is not None:
            return kept
        case = self.source[patient]
        if len(case.slides) < 2:
            self._kept[patient] = case
        return case

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_kept": {}}
