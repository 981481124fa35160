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
    output_scale: float = Field(
        0.3,
        gt=0,
        description="factor on the initial weights; small starts nearly linear",
        json_schema_extra={"search": {"loguniform": [0.03, 1.0]}},
    )


class PerceptronTokensParams(ModalTokensParams):
    """Parameters of the small network behind principal components."""

    tokens: int = Field(
        1, ge=1, description="tokens of a patient", json_schema_extra={"search": {"choice": [1, 4]}}
    )
    hidden: int = Field(
        32, ge=1, description="width of the layer", json_schema_extra={"search": {"choice": [32, 128]}}
    )
    input_dropout: float = Field(0.2, ge=0, lt=1, description="of the columns")
    dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="behind the layer",
        json_schema_extra={"search": {"uniform": [0.0, 0.6]}},
    )
    output_scale: float = Field(
        0.3,
        gt=0,
        description="factor on the initial weights of the last layer; small starts nearly linear",
        json_schema_extra={"search": {"loguniform": [0.03, 1.0]}},
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


class PathwayTokensParams(ModalTokensParams):
    """Parameters of tokens of gene sets; the defaults are the published ones, with fewer tokens."""

    tokens: int = Field(
        16,
        ge=1,
        description="tokens of a patient; 64 published",
        json_schema_extra={"search": {"choice": [8, 16, 64]}},
    )
    hidden: int = Field(
        256,
        ge=1,
        description="width of a pathway's network",
        json_schema_extra={"search": {"choice": [32, 64, 256]}},
    )
    mixer_layers: int = Field(3, ge=0, description="layers of the mixer over pathways")
    dropout: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="in networks and mixer",
        json_schema_extra={"search": {"uniform": [0.0, 0.5]}},
    )


MODAL_TOKENS = {
    "projection": (
        "a linear layer: for vectors of a pretrained encoder, components and short tables",
        LinearTokensParams,
        "equipoise.models.modaltune.tokens:LinearTokens",
    ),
    "perceptron": (
        "a layer with dropout and a small start: for principal components of a few hundred patients",
        PerceptronTokensParams,
        "equipoise.models.modaltune.tokens:PerceptronTokens",
    ),
    "self_normalising": (
        "a self-normalising network (Klambauer et al. 2017): for many columns",
        SnnTokensParams,
        "equipoise.models.modaltune.tokens:SnnTokens",
    ),
    "pathways": (
        "a network per gene set of tables.rna.gene_sets, a mixer over them (ModalTune 2025)",
        PathwayTokensParams,
        "equipoise.models.modaltune.pathways:PathwayTokens",
    ),
}
