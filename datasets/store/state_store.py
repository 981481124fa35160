"""Hidden states of a frozen slide encoder, case by case, in a feature store of their own.

A row of the index is a patient's slides together: an encoder that looks at all tiles of a patient gives other states
for a slide alone. Its record batch has a row per token; column ``x`` is the number of tiles behind the token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.store.feature_store import FeatureStore


@dataclass(frozen=True)
class StateStore:
    """Reads states by the slides of a patient.

    Parameters
    ----------
    store
        Of :func:`table_of_cases`, chosen or registered.
    """

    store: FeatureStore

    def read(self, slides: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """States of a patient.

        Returns
        -------
        states, counts
            float16 ``[T, F]``, a read-only view of the mapped file; int32 ``[T]`` tiles behind each token.

        Raises
        ------
        DataError
            If the patient has no states; the message says why.
        """
        states, places = self.store.read(name_of(slides))
        return states, places[:, 0]


def name_of(slides: Sequence[str]) -> str:
    """Name of a patient's slides in the index."""
    return " + ".join(slides)


def table_of_cases(cases: Iterable[Sequence[str]], tile_index: pd.DataFrame) -> pd.DataFrame:
    """What a store of states registers.

    Parameters
    ----------
    cases
        Slides of every patient, in their order.
    tile_index
        Index of the store of tiles, by slide.

    Returns
    -------
    Columns slide, path, mpp and fingerprint: states are the same as long as the tiles of all slides are; and ``keys``,
    those of the tiles.
    """
    import pandas as pd

    rows = []
    for slides in cases:
        keys = [str(tile_index.at[slide, "key"]) for slide in slides]
        fingerprint = hashlib.sha256(" ".join(keys).encode()).hexdigest()
        rows.append((name_of(slides), "", float("nan"), fingerprint, keys))
    return pd.DataFrame(rows, columns=["slide", "path", "mpp", "fingerprint", "keys"])
