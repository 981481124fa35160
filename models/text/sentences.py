"""Sentences of labels. Fields: those of the prompts of ModalTune (location, diagnosis, stages, survival); NaN is
skipped."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from equipoise.models.text.params import FIELDS

if TYPE_CHECKING:
    from equipoise.models.text.params import LabelText

#: Days in a month.
MONTH = 365.25 / 12


def sentence(fields: Mapping[str, str | None]) -> str:
    """One sentence of the fields that are known, in the order of :data:`FIELDS`, ``survival`` last.

    >>> sentence({"site": "breast", "diagnosis": "invasive lobular carcinoma", "stage": None})
    'location: breast; diagnosis: invasive lobular carcinoma'

    Raises
    ------
    ValueError
        If no field is known, or one is none of ours.
    """
    names = FIELDS | {"survival": "survival"}
    if unknown := set(fields) - set(names):
        raise ValueError(
            f"unknown fields of a label: {', '.join(sorted(unknown))}; known: {', '.join(names)}"
        )
    parts = [f"{said}: {fields[name]}" for name, said in names.items() if _known(fields.get(name))]
    if not parts:
        raise ValueError("a label without a known field has no sentence")
    return "; ".join(parts)


def _known(value: object) -> bool:
    return value is not None and value == value and str(value).strip() != ""


def class_sentences(classes: Sequence[str], text: LabelText) -> tuple[str, ...]:
    """A sentence per class.

    Raises
    ------
    ValueError
        If ``words`` names a class that the task has not.
    """
    if unknown := set(text.words) - set(classes):
        raise ValueError(
            f"words for {', '.join(sorted(unknown))}, which is no class; classes are {', '.join(classes)}"
        )
    # The location first: where the field itself is the location, the class stands there.
    return tuple(sentence({"site": text.site} | {text.field: text.words.get(name, name)}) for name in classes)


def survival_sentences(edges_days: Sequence[float], site: str | None) -> tuple[str, ...]:
    """A sentence per interval of follow-up, in months."""
    months = [f"{day / MONTH:.0f}" if day >= MONTH else f"{day / MONTH:.1f}" for day in edges_days]
    if not months:
        said = ["died"]
    else:
        between = [f"died between {a} and {b} months" for a, b in itertools.pairwise(months)]
        said = [f"died before {months[0]} months", *between, f"lived beyond {months[-1]} months"]
    return tuple(sentence({"site": site, "survival": text}) for text in said)
