"""What the trainings of a study read: patients, tiles, and what identifies the content of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import CaseReader
    from equipoise.datasets.cohorts.cohort import Cohorts
    from equipoise.datasets.store.feature_store import FeatureStore
    from equipoise.datasets.store.state_store import StateStore


@dataclass(frozen=True)
class StudyInputs:
    """Inputs of all trainings of a study: cross-validation, search and federation read the same.

    Parameters
    ----------
    cohorts
        Patients with labels, and slides that have features.
    tiles
        The store to read tiles from; ``None`` where the model reads tables only.
    features
        Address of the feature store, recorded with every result; ``no tiles`` for models of tables.
    content_keys
        Patient → text of labels, slides and tables. A model must be retrained where it changes.
    states
        The store of hidden states, for a model that reads them in place of tiles.
    """

    cohorts: Cohorts
    tiles: FeatureStore | None
    features: str
    content_keys: Mapping[str, str]
    states: StateStore | None = None

    def cases(self, role: Literal["develop", "external"]) -> CaseReader:
        """Cases of the development cohorts, or of the external ones."""
        from equipoise.datasets.cohorts.cases import CaseReader

        return CaseReader(self.cohorts, self.tiles, role=role, states=self.states)
