"""RNA encoders a study can name, without importing one."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from equipoise.models.params import StrictParams

#: Kinds whose zeros are genes that are not expressed.
_WITH_ZEROS = frozenset({"counts", "tpm", "log"})


class RnaEncoderParams(StrictParams):
    """Base of every RNA encoder's parameters.

    Expression comes as counts, abundances, logarithms or z-scores, and most encoders read nonsense out of some of them
    without failing. An encoder lists the kinds that it can use, and a study with another kind is refused.
    """

    #: Kinds of expression that it can use.
    accepts: ClassVar[frozenset[str]] = frozenset({"counts", "tpm", "log", "zscore"})
    #: Parameters that are paths; relative ones start from the folder of the study file.
    paths: ClassVar[tuple[str, ...]] = ()
    #: GPUs per worker that the encoder is meant for; 0: runs on CPUs.
    gpus: ClassVar[float] = 0.0
    #: So quick that starting workers costs more than the work: it runs in the driver.
    in_process: ClassVar[bool] = False


class FolderParams(RnaEncoderParams):
    """Parameters of an encoder that lies in a folder."""

    accepts: ClassVar[frozenset[str]] = _WITH_ZEROS
    paths: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str = Field(min_length=1, description="folder with the encoder's files")


class PcaParams(FolderParams):
    """Parameters of principal components of a reference.

    Components of the study's own patients are ``tables.rna.components``: those are fitted on the training patients of
    each fold. An encoder is the same in all folds, so its components come from other samples.
    """

    in_process: ClassVar[bool] = True


class NetworkParams(FolderParams):
    """Parameters of an encoder that is a network."""

    gpus: ClassVar[float] = 1.0

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU where one is visible"
    )
    batch: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="samples per pass through the network; more are padded to the longest, which changes last bits",
    )


class ScGptParams(NetworkParams):
    """Parameters of scGPT: the folder is that of the published checkpoint."""

    paths: ClassVar[tuple[str, ...]] = ("folder", "panel")

    policy: Literal["draws", "panel", "all"] = Field(
        default="draws",
        description="genes of a profile that the network sees: draws: the mean over several random draws of max_length "
        "genes; panel: those of a file; all: every expressed gene at once",
    )
    draws: int = Field(
        default=8, ge=1, le=256, description="of policy draws; published is 1, at random at every call"
    )
    max_length: int = Field(
        default=1200, ge=2, description="of policy draws: tokens of a draw, <cls> included"
    )
    panel: str | None = Field(default=None, description="of policy panel: file with one gene symbol a line")

    @model_validator(mode="after")
    def _panel_belongs_to_its_policy(self) -> Self:
        if (self.panel is not None) != (self.policy == "panel"):
            raise ValueError("a panel is for policy: panel, which needs one")
        return self


class MaskedGeneParams(NetworkParams):
    """Parameters of the encoder that ``equipoise pretrain-rna`` has trained on a single-cell reference."""

    gpus: ClassVar[float] = 0.0  # small


class BulkTransformerParams(FolderParams):
    """Parameters of a transformer over bulk genes: ``config.json``, ``genes.txt`` and ``model.safetensors``."""

    accepts: ClassVar[frozenset[str]] = frozenset({"tpm", "log"})
    gpus: ClassVar[float] = 1.0

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU where one is visible"
    )


ENTRIES: dict[str, tuple[str, type[RnaEncoderParams], str]] = {
    "pca": (
        "principal components of log1p expression in a reference (not the study's patients: tables.rna.components)",
        PcaParams,
        "equipoise.models.rna.pca:PcaEncoder",
    ),
    "scgpt": (
        "scGPT from its official folder (args.json, vocab.json, best_model.pt): transformer over binned genes, 512-d",
        ScGptParams,
        "equipoise.models.rna.scgpt:ScGpt",
    ),
    "masked_gene": (
        "small transformer that predicts hidden genes, pre-trained on your own single cells (equipoise pretrain-rna)",
        MaskedGeneParams,
        "equipoise.models.rna.masked_gene:MaskedGeneEncoder",
    ),
    "bulk_transformer": (
        "transformer over a list of bulk genes in bins of log TPM, as BulkRNABert is described; layout in config.json",
        BulkTransformerParams,
        "equipoise.models.rna.bulk_transformer:BulkTransformer",
    ),
}
