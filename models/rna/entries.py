"""RNA encoders a study can name, without importing one."""

from typing import ClassVar

from pydantic import Field

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


ENTRIES: dict[str, tuple[str, type[RnaEncoderParams], str]] = {
    "pca": (
        "principal components of log1p expression in a reference (not the study's patients: tables.rna.components)",
        PcaParams,
        "equipoise.models.rna.pca:PcaEncoder",
    ),
}
