"""Makers of modal tokens that ModalTune can name, without importing torch."""

from pydantic import Field

from equipoise.models.params import StrictParams


class ModalTokensParams(StrictParams):
    """Base of the parameters of what makes tokens of a table."""


class LinearTokensParams(ModalTokensParams):
    """Parameters of the linear tokens."""

    tokens: int = Field(
        1, ge=1, description="tokens of a patient", json_schema_extra={"search": {"choice": [1, 4]}}
    )


class SnnTokensParams(ModalTokensParams):
    """Parameters of the self-normalising network."""

    tokens: int = Field(
        4, ge=1, description="tokens of a patient", json_schema_extra={"search": {"choice": [1, 4, 16]}}
    )
    hidden: int = Field(
        256, ge=1, description="width of the layers", json_schema_extra={"search": {"choice": [64, 256]}}
    )
    layers: int = Field(1, ge=1, json_schema_extra={"search": {"choice": [1, 2]}})
    dropout: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="alpha dropout behind every layer",
        json_schema_extra={"search": {"uniform": [0.0, 0.5]}},
    )


MODAL_TOKENS = {
    "projection": (
        "a linear layer: for vectors of a pretrained encoder, components and short tables",
        LinearTokensParams,
        "equipoise.models.modaltune.tokens:LinearTokens",
    ),
    "self_normalising": (
        "a self-normalising network (Klambauer et al. 2017): for many columns",
        SnnTokensParams,
        "equipoise.models.modaltune.tokens:SnnTokens",
    ),
}
