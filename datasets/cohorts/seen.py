"""Patients that a pre-trained model has seen, as its folder records them, so that nobody tests on them.

Identifiers are stored as salted hashes unless plain ones are asked for. Hashes hide a list of patients from whoever
opens the file; they do not hide a patient from somebody who has a list of candidates to try, as there is for barcodes
of public cohorts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from equipoise.datasets.errors import DataError

#: Layout of the record.
FORMAT = "equipoise-seen/1"
#: What stands in every record with hashes.
REMARK = (
    "SHA-256 of salt, kind and identifier (without outer spaces, lower case). Hashes hide identifiers at a glance; "
    "they do not hide a patient from somebody who can list candidates."
)


@dataclass(frozen=True)
class SeenPart:
    """Patients and slide files of one training.

    Attributes
    ----------
    salt
        Of the hashes; empty where identifiers are plain.
    patients, slides
        Identifiers of patients, and fingerprints of slide files: hashed, or plain.
    """

    salt: str
    patients: frozenset[str]
    slides: frozenset[str]

    @classmethod
    def of(cls, patients: Iterable[str], slides: Iterable[str], salt: str) -> Self:
        """The record of a training; an empty salt keeps identifiers readable."""
        empty = cls(salt, frozenset(), frozenset())
        return cls(
            salt,
            frozenset(empty.key("patient", patient) for patient in patients),
            frozenset(empty.key("slide", slide) for slide in slides if slide),
        )

    def key(self, kind: str, identifier: str) -> str:
        """How the record writes an identifier."""
        plain = identifier.strip().casefold()
        return hashlib.sha256(f"{self.salt}\n{kind}\n{plain}".encode()).hexdigest() if self.salt else plain


@dataclass(frozen=True)
class Seen:
    """Patients and slide files that a model has seen, in one training or in several one after another."""

    parts: tuple[SeenPart, ...] = ()

    def patients_among(self, patients: Iterable[str]) -> list[str]:
        """Those of the patients that were seen, in their order."""
        return [p for p in patients if any(part.key("patient", p) in part.patients for part in self.parts)]

    def slides_among(self, fingerprints: Iterable[str]) -> list[str]:
        """Those of the fingerprints of slide files that were seen, in their order."""
        return [
            f for f in fingerprints if any(part.key("slide", f) in part.slides for part in self.parts) and f
        ]

    def __add__(self, other: Seen) -> Seen:
        return Seen((*self.parts, *(part for part in other.parts if part not in self.parts)))

    def to_json(self) -> dict[str, Any]:
        """Plain data, the same for the same patients in any order."""
        return {
            "format": FORMAT,
            "parts": [
                {
                    "ids": "hashed" if part.salt else "plain",
                    **({"salt": part.salt, "remark": REMARK} if part.salt else {}),
                    "patients": sorted(part.patients),
                    "slides": sorted(part.slides),
                }
                for part in self.parts
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """The inverse of :meth:`to_json`.

        Raises
        ------
        DataError
            If it is no such record: without it nobody knows whom the model has seen.
        """
        try:
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}")
            parts = tuple(
                SeenPart(str(row.get("salt", "")), frozenset(row["patients"]), frozenset(row["slides"]))
                for row in data["parts"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"this is no record of the patients that a model has seen: {error}",
                where=where,
                fix="take the whole folder that `equipoise pretrain` wrote",
            ) from error
        return cls(parts)
