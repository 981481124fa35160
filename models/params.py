"""Base of all parameter models of this folder. Light: pydantic only."""

from pydantic import BaseModel, ConfigDict


class StrictParams(BaseModel):
    """Parameters that refuse unknown names and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
