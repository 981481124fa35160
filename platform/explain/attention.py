"""Attention of a model over tiles, where the model has one.

Attention says where a model looks; a tile with a large weight may speak for or against the class (Jain and Wallace,
"Attention is not explanation", NAACL 2019, arXiv 1902.10186).
"""

from __future__ import annotations

from torch import Tensor, no_grad

from equipoise.models.base import attention_of
from equipoise.platform.errors import StudyError
from equipoise.platform.explain.entries import AttentionParams
from equipoise.platform.explain.explained import Explained, evaluating


class AttentionWeights:
    """Weights of the tiles, times the number of tiles: 1 is the weight that every tile has without attention."""

    def __init__(self, params: AttentionParams) -> None:
        self.params = params

    def scores(self, case: Explained) -> Tensor:
        """``[N]``; they sum to N.

        Raises
        ------
        StudyError
            If the model has no attention over tiles.
        """
        with no_grad(), evaluating(case.model):
            weights = attention_of(case.model, case.batch)
        if weights is None:
            raise StudyError(
                f"a {type(case.model).__name__} has no attention over tiles that could be shown: use method "
                "integrated_gradients, gradient_input or single_tile"
            )
        return weights[case.output.task.head.name][0] * case.tiles
