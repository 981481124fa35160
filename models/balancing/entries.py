"""Loss weightings and gradient aggregators a study can name, without importing torch."""

from pydantic import BaseModel, ConfigDict


class NoParams(BaseModel):
    """A method without parameters."""

    model_config = ConfigDict(extra="forbid")


WEIGHTINGS = {
    "equal": ("every task loss counts once", NoParams, "equipoise.models.balancing.equal:Equal"),
}

AGGREGATORS = {
    "none": (
        "one backward pass over the weighted sum of the losses",
        NoParams,
        "equipoise.models.balancing.none:NoAggregation",
    ),
}
