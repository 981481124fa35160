"""Attribution methods that a study can name, with their parameters, without importing torch."""

from typing import ClassVar, Literal

from pydantic import Field

from equipoise.models.params import StrictParams


class AttributionParams(StrictParams):
    """Base of the parameters of attribution methods; the class attributes say what a method needs and gives."""

    #: Whether the sign of a score means a direction; else only its size means something.
    signed: ClassVar[bool] = True
    #: Whether the scores of a case sum to the difference that the method's ``difference`` gives.
    complete: ClassVar[bool] = False
    #: Whether the method reads weights of an attention, which not every model has.
    needs_attention: ClassVar[bool] = False
    #: Whether the method needs a gradient from the output back to the tiles.
    needs_gradient: ClassVar[bool] = False
    #: What a score means; ``{output}`` stands for the explained number.
    unit: ClassVar[str] = "{output}"


class AttentionParams(AttributionParams):
    """Parameters of attention weights: there are none."""

    signed: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = True
    unit: ClassVar[str] = "attention (1 = an average tile)"


class _FromBaseline(AttributionParams):
    """Base of methods that compare tiles with a baseline."""

    needs_gradient: ClassVar[bool] = True

    baseline: Literal["slide_mean", "zero"] = Field(
        "slide_mean",
        description="what a tile is compared with: the mean tile of its own case, or a tile of zeros",
    )


class GradientInputParams(_FromBaseline):
    """Parameters of gradient x input."""

    unit: ClassVar[str] = "change of the {output} to first order"


class IntegratedGradientsParams(_FromBaseline):
    """Parameters of integrated gradients."""

    complete: ClassVar[bool] = True
    unit: ClassVar[str] = "share of the tile in the {output}"

    steps: int = Field(16, ge=1, le=512, description="points of the Gauss-Legendre rule along the path")


class OcclusionParams(AttributionParams):
    """Parameters of occlusion: there are none."""

    unit: ClassVar[str] = "{output} lost without the tile"


class SingleTileParams(AttributionParams):
    """Parameters of the prediction of single tiles: there are none."""

    unit: ClassVar[str] = "{output} of the tile alone, minus that of the case"


ATTRIBUTIONS = {
    "attention": (
        "weights of the model's attention over tiles: where it looks, not which way a tile pushes",
        AttentionParams,
        "equipoise.platform.explain.attention:AttentionWeights",
    ),
    "gradient_input": (
        "gradient times distance from the baseline: one pass through the model",
        GradientInputParams,
        "equipoise.platform.explain.gradients:GradientInput",
    ),
    "integrated_gradients": (
        "gradients along the path from the baseline, whose sum is the change of the output (Sundararajan et al. 2017)",
        IntegratedGradientsParams,
        "equipoise.platform.explain.gradients:IntegratedGradients",
    ),
    "occlusion": (
        "change of the output without the tile: a pass for each tile, exact and slow (Zeiler and Fergus 2014)",
        OcclusionParams,
        "equipoise.platform.explain.removal:Occlusion",
    ),
    "single_tile": (
        "what the model says of a slide that is this tile alone: fast, blind to what tiles say together",
        SingleTileParams,
        "equipoise.platform.explain.removal:SingleTile",
    ),
}
