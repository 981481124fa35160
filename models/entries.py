"""Models a study can name, with their parameters and search ranges, without importing torch."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class JointParams(BaseModel):
    """Parameters of the joint transformer; the defaults are the published ones (arXiv 2403.03891)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(
        384, ge=1, description="width of tokens", json_schema_extra={"search": {"choice": [192, 384, 576]}}
    )
    heads: int = Field(6, ge=1, description="attention heads; must divide dim")
    encoder_layers: int = Field(2, ge=0, json_schema_extra={"search": {"choice": [1, 2, 3]}})
    decoder_layers: int = Field(2, ge=1, json_schema_extra={"search": {"choice": [1, 2]}})
    feedforward: int = Field(768, ge=1, description="width inside the feed-forward blocks")
    dropout: float = Field(0.1, ge=0, lt=1, json_schema_extra={"search": {"uniform": [0.0, 0.4]}})

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "JointParams":
        if self.dim % self.heads:
            raise ValueError(
                f"dim {self.dim} is not divisible by heads {self.heads}; for example dim: {self.heads * 64}"
            )
        return self


ENTRIES = {
    "joint": (
        "transformer over all tiles with one learned token per task (arXiv 2403.03891)",
        JointParams,
        "equipoise.models.joint.model:JointTransformer",
    ),
}
