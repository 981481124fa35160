"""Section ``training.text`` of a study. Light: pydantic only."""

from typing import Any, Literal

from pydantic import Field

from equipoise.models.params import StrictParams

#: Field of a label → how a sentence opens with it.
FIELDS = {
    "site": "location",
    "diagnosis": "diagnosis",
    "stage": "overall stage",
    "tumour": "tumour stage",
    "nodes": "lymph nodes",
    "metastasis": "metastasis",
}


class LabelText(StrictParams):
    """How the labels of one task are said."""

    field: Literal["site", "diagnosis", "stage", "tumour", "nodes", "metastasis"] = "diagnosis"
    """What the classes of the task are."""
    site: str | None = None
    """Where the tumour is, the same for all patients; left out of sentences if not given."""
    words: dict[str, str] = Field(default_factory=dict)
    """Class → words for it, for example ``IDC: invasive ductal carcinoma``; a class not named here is said as it is."""


class TextParams(StrictParams):
    """Heads that are pulled towards the text of labels in place of direct ones (ModalTune, arXiv 2503.17564)."""

    tasks: list[str] | None = None
    """Tasks with a head on text; all binary and multiclass ones if not given. Survival has its direct loss unless it is
    named here: text alone loses information about survival."""
    labels: dict[str, LabelText] = Field(default_factory=dict)
    """Task → how its labels are said."""
    encoder: str = "hashed"
    """Text encoder: ``equipoise ls text_encoders``."""
    encoder_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the text encoder."""
    dim: int = Field(default=256, ge=8)
    """Length of embeddings of cases and labels."""
    seed: int = Field(default=0, ge=0)
    """Of the random projector from text to ``dim`` numbers; embeddings of different seeds do not mix."""
    centre: bool = True
    """Subtract the mean target of the training labels of the task before targets get length 1."""
    loss: Literal["kl", "cosine", "infonce"] = "infonce"
    """``kl``: as published, on softmaxes of the embeddings; ``cosine``: 1 - cosine with the target; ``infonce``:
    cross-entropy over all labels of the task."""
    temperature: float = Field(default=1.0, gt=0, json_schema_extra={"search": {"loguniform": [0.01, 1.0]}})
    """Of the softmaxes of ``kl``. Between 0.1 and 10 it changes next to nothing."""
    spread: float = Field(default=0.1, gt=0, json_schema_extra={"search": {"loguniform": [0.03, 0.3]}})
    """Temperature of the softmax over labels that gives probabilities, and of ``infonce``."""
    bins: int = Field(default=4, ge=2)
    """Intervals of time of a survival task, with about equal Kaplan-Meier mass in training."""
    ordinal: bool = True
    """Targets of survival lie in order on the arc between the first and the last sentence; false: every interval has
    its own sentence, as published, which is nearly blind to order."""

    def takes(self, task: str, kind: str) -> bool:
        """Whether a task of this name and type has a head on text."""
        return kind in ("binary", "multiclass") if self.tasks is None else task in self.tasks
