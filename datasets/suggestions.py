"""Suggestions in messages: the nearest names, and the values that a column has."""

import difflib
from collections import Counter
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], n: int = 3) -> str:
    """``"; nearest: 'MSI Status', 'MSI'"`` for close names, or an empty string."""
    by_folded: dict[str, str] = {}
    for name in known:
        by_folded.setdefault(str(name).casefold(), str(name))
    close = difflib.get_close_matches(word.casefold(), by_folded, n=n, cutoff=0.6)
    # A word inside a longer name is near for a person, though not for an edit distance.
    inside = [name for name in by_folded if len(word) > 2 and word.casefold() in name and name not in close]
    names = [by_folded[name] for name in [*close, *inside][:n]]
    return f"; nearest: {', '.join(map(repr, names))}" if names else ""


def value_counts(values: Iterable[str], n: int = 12) -> str:
    """``"MSS 318, MSI-L 74, …"``, most frequent first."""
    counts = Counter(values)
    shown = [f"{value or '(empty)'} {count}" for value, count in counts.most_common(n)]
    return ", ".join(shown) + (f", … ({len(counts)} values)" if len(counts) > n else "")
