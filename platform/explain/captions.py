"""What a map says in words: titles, what both ends of its scale mean, checks."""

from __future__ import annotations

import unicodedata

from equipoise.platform.explain.tile_scores import TileScores

RESEARCH_ONLY = "Research use only."


def towards(scores: TileScores) -> str:
    """What a high score means."""
    if not scores.signed:
        return "high"
    if scores.kind == "survival":
        return "higher risk"
    return f"towards {scores.class_name}" if scores.class_name else "higher value"


def away(scores: TileScores) -> str:
    """What a low score means."""
    if not scores.signed:
        return "low"
    if scores.kind == "survival":
        return "lower risk"
    return f"away from {scores.class_name}" if scores.class_name else "lower value"


def method(scores: TileScores) -> str:
    """The method as a reader writes it."""
    return scores.method.replace("_", " ")


def failed_checks(scores: TileScores) -> list[str]:
    """A sentence per check that this map did not pass."""
    return [f"{check.name.replace('_', ' ')}: {check.reason}" for check in scores.failed]


def checks_line(scores: TileScores) -> str:
    """One line on all checks."""
    if not scores.checks:
        return "This map has not been checked."
    if scores.failed:
        names = ", ".join(check.name.replace("_", " ") for check in scores.failed)
        return f"This map failed {len(scores.failed)} of {len(scores.checks)} checks ({names})."
    return (
        f"This map passed {'its check' if len(scores.checks) == 1 else f'all {len(scores.checks)} checks'}."
    )


def drawable(text: str) -> str:
    """Text in the letters that the built-in font of Pillow has: accents are dropped, dashes and signs replaced."""
    known = {
        "–": "-",
        "—": "-",
        "−": "-",
        "×": "x",
        "µ": "u",
        "μ": "u",
        "≥": ">=",
        "≤": "<=",
        "→": "->",
        "±": "+/-",
    }
    plain = "".join(known.get(letter, letter) for letter in text)
    decomposed = unicodedata.normalize("NFKD", plain)
    letters = (letter for letter in decomposed if not unicodedata.combining(letter))
    return "".join(letter if letter in "·“”‘’…" or " " <= letter <= "~" else "?" for letter in letters)
