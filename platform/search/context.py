"""What a search prepares before its first trial, and what every trial is given. Light: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.space import Space

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case
    from equipoise.datasets.cohorts.cohort import Cohorts
    from equipoise.datasets.cohorts.splits import Fold
    from equipoise.platform.federation.simulation.sites import Client
    from equipoise.platform.study.schema import Study


@dataclass(frozen=True)
class TrialInputs:
    """Inputs of all trials of a search.

    Parameters
    ----------
    settings
        The study, resolved.
    cases
        Search patient → case, without any other patient.
    folds
        Inner folds, in the order in which they are run.
    metric
        Metric that is maximised.
    clients
        Clients of a federation, with their search patients.
    """

    settings: dict[str, Any]
    cases: Mapping[str, Case]
    folds: tuple[Fold, ...]
    metric: str
    clients: tuple[Client, ...] = ()

    def first_seed_fold(self, name: str) -> str:
        """The fold of the first seed with the same patients as this fold; empty if it is that fold itself."""
        parts = {fold.name: (fold.train, fold.val, fold.test) for fold in self.folds}
        first = next(other for other, fold_parts in parts.items() if fold_parts == parts[name])
        return "" if first == name else first


@dataclass(frozen=True)
class SearchContext:
    """Everything that a search needs before its first trial.

    Parameters
    ----------
    study, params
        The study, and its ``search`` section or the defaults.
    space
        The search space.
    inputs
        Inputs of all trials.
    seed
        Seed of the search.
    searched, held_out
        Development patients that trials see, and those that they do not see.
    cohorts
        The cohorts, restricted to the searched patients.
    fingerprint
        What must be equal for records to belong to this search.
    """

    study: Study
    params: SearchParams
    space: Space
    inputs: TrialInputs
    seed: int
    searched: tuple[str, ...]
    held_out: tuple[str, ...]
    cohorts: Cohorts
    fingerprint: dict[str, Any]


class CachedCases(Mapping[str, "Case"]):
    """A mapping that caches the cases that were read.

    A bag of one slide stays the store's memory map, one physical copy for all processes of a node: only its location,
    labels and tables are cached. Bags of several slides are copies and are read again each time.

    Parameters
    ----------
    cases
        Source of the cases; the cache is not pickled.
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
