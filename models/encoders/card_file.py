"""A tile encoder described by a file of the user: the card of a vision transformer, as YAML or JSON.

The file is data: names, numbers and lists, read with the safe loader. It can describe what
:class:`~equipoise.models.encoders.card.ModelCard` can; unknown keys are refused. Anything else needs code, which comes
in a package through the entry point group ``equipoise.encoders``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from equipoise.models.encoders.card import ModelCard

#: What only encoders of the hub have.
_NOT_OF_THE_HUB: dict[str, Any] = {"hub": "", "gated": False, "line": "", "licence": ""}
_LARGEST = 64 * 1024  # bytes of a description
_NEEDED = ("name", "sha256", "pairings", "normalisation", "fit", "precision")


def read_card(path: str) -> ModelCard:
    """The card that a file describes.

    Parameters
    ----------
    path
        ``.yaml``, ``.yml`` or ``.json``.

    Raises
    ------
    ValueError
        If there is no such file or it is no card, with the first thing that is wrong.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"{file}: there is no such file (an absolute path: workers may run in another folder)"
        )
    if file.stat().st_size > _LARGEST:
        raise ValueError(f"{file}: is too large for the description of an encoder")
    try:
        given = yaml.safe_load(file.read_text("utf-8"))  # JSON is YAML
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{file}: a description has keys and values")
    missing = [key for key in (*_NEEDED, "shape") if given.get(key) is None]
    if missing:
        raise ValueError(f"{file}: {', '.join(missing)} must be said: nothing here has a safe default")
    try:
        return TypeAdapter(ModelCard).validate_python(_NOT_OF_THE_HUB | given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{file}: {'.'.join(str(at) for at in first['loc'])}: {first['msg']}") from error
