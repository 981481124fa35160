"""Text encoders a study can name, without importing one."""

from pydantic import Field

from equipoise.models.params import StrictParams


class TextEncoderParams(StrictParams):
    """Base of every text encoder's parameters."""


class HashedParams(TextEncoderParams):
    """Parameters of the embedded encoder."""

    buckets: int = Field(default=448, ge=64, description="n-grams share this many numbers")
    order: float = Field(
        default=0.5, ge=0, lt=1, description="share of the squared length that numbers in a sentence get"
    )


class TransformersParams(TextEncoderParams):
    """Parameters of a pretrained encoder from a folder."""

    path: str | None = Field(
        default=None,
        description="folder with a Hugging Face model and its tokenizer; the packaged MiniLM if not given",
    )
    max_tokens: int = Field(default=256, ge=8, description="longer sentences are refused")


ENTRIES: dict[str, tuple[str, type[TextEncoderParams], str]] = {
    "hashed": (
        "hashed words and letters, and numbers in their order; no weights; knows no synonyms",
        HashedParams,
        "equipoise.models.text.hashed:HashedEncoder",
    ),
    "transformers": (
        "any Hugging Face text encoder in a local folder, mean over tokens; extra [text] brings MiniLM",
        TransformersParams,
        "equipoise.models.text.pretrained:TransformersEncoder",
    ),
}
