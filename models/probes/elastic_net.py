"""The model ``elastic_net``: heads linear in tables and the mean tile, to be fitted by a solver."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.entries import ElasticNetParams
from equipoise.models.probes.rows import LinearRows


class ElasticNet(LinearRows):
    """:class:`~equipoise.models.probes.rows.LinearRows` with the parameters of a study."""

    def __init__(self, params: ElasticNetParams, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        super().__init__(shape, heads, params.clinical_factor)
