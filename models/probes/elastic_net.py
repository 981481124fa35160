"""The model ``elastic_net``: heads linear in tables and the mean tile, to be fitted by a solver."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.entries import ElasticNetParams
from equipoise.models.probes.late_rows import LateRows
from equipoise.models.probes.rows import LinearRows


def elastic_net(params: ElasticNetParams, shape: CaseShape, heads: Sequence[TaskHead]) -> LinearRows:
    """One linear model of all modalities, or with ``fusion: late`` one of each and the weights of their sum."""
    kinds = {"early": LinearRows, "late": LateRows}
    return kinds[params.fusion](shape, heads, params.clinical_factor)
