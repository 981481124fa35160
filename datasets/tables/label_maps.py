"""Label maps of a study against the values that a column has: what is mapped, what is not, and the line to write.

A value that the study does not name never becomes a class by itself. The lines that messages offer are complete: they
repeat what the study says already, and a value that is a known one in another spelling (``msi-h`` beside ``MSI-H``) is
offered for the class of that one.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from equipoise.datasets.errors import DataError
from equipoise.datasets.params import label_key
from equipoise.datasets.suggestions import nearest, value_counts
from equipoise.datasets.tables.reading import MISSING

#: Option under which values stand whose patients have no label.
EXCLUDE = "exclude"
#: Spellings, by :func:`same_label`, of values that say that nobody knows; never a class unless the study says so.
NOT_KNOWN = frozenset(
    [
        *(
            "--",
            ".",
            "?",
            "n.a",
            "n.a.",
            "n.d",
            "n.d.",
            "na",
            "nan",
            "nd",
            "null",
            "unknown",
            "unk",
            "missing",
        ),
        *(
            "notapplicable",
            "notavailable",
            "notdone",
            "notevaluated",
            "notperformed",
            "notreported",
            "notknown",
        ),
        *("notassessed", "notdetermined"),
    ]
)


def same_label(label: str) -> str:
    """The form in which spellings of one label are equal: case, Unicode form, invisible characters, separators.

    Separators between letters go, those between digits and signs at the end stay: ``ER+`` is not ``ER-``, ``1-2`` not
    ``12``.

    >>> same_label("MSI H") == same_label("msi-h"), same_label("ER+") == same_label("ER-")
    (True, False)
    """
    text = unicodedata.normalize("NFKC", label_key(label))
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc")).casefold().strip()
    text = re.sub(r"[\u2010-\u2015\u2212]", "-", text)
    return re.sub(r"(?<=[^\W\d])[-_\s]+(?=\w)|(?<=\w)[-_\s]+(?=[^\W\d])", "", text)


def binary_mapping(
    text: list[str], one: list[str], zero: list[str], exclude: list[str], where: str, keys: tuple[str, str]
) -> dict[str, float]:
    """The map of labels to 1 and 0; where ``zero`` is empty and a single other value occurs, that value is 0.

    Another spelling of a known value, or one that says that nobody knows, is not such a single other value.

    Parameters
    ----------
    text
        [n] values of the column.
    one, zero, exclude
        Labels of the study.
    where
        Place for the messages.
    keys
        Option names of ``one`` and ``zero``, for the messages.

    Raises
    ------
    DataError
        If a value is neither mapped nor excluded, or a class has no patient.
    """
    mapping = dict.fromkeys(one, 1.0) | dict.fromkeys(zero, 0.0)
    if not zero:
        rest = sorted({label_key(v) for v in text if v not in MISSING} - set(one) - set(exclude))
        named = {same_label(label) for label in (*one, *exclude)} | NOT_KNOWN
        named |= {"none"} if "+" in one else {"none", "-"}  # a class of some columns, and a gap of others
        if len(rest) == 1 and same_label(rest[0]) not in named:
            mapping[rest[0]] = 0.0
    groups = {keys[0]: one, keys[1]: [label for label, value in mapping.items() if value == 0.0]}
    refuse_unmapped(text, groups | {EXCLUDE: exclude}, where, keys[1])
    classes = {1: f"{keys[0]}: {', '.join(one)}"}
    if keys[1] == "negative":  # a cohort in which everybody had the event can be analysed; one class cannot
        classes[0] = keys[1]
    refuse_absent_classes(text, mapping, classes, where)
    return mapping


def refuse_unmapped(text: Iterable[str], groups: Mapping[str, Sequence[str]], where: str, other: str) -> None:
    """A value that is no class and not excluded is an error that shows the lines to write.

    Parameters
    ----------
    text
        Values of the column.
    groups
        Option of the study → its labels.
    where
        Place for the message.
    other
        Option that a value may belong to that is no spelling of a known one, beside ``exclude``.
    """
    text = list(text)
    rest = _unnamed(text, [label for labels in groups.values() for label in labels])
    if not rest:
        return
    spelled = {same_label(label): option for option, labels in groups.items() for label in labels}
    lines = {option: list(labels) for option, labels in groups.items()}
    changed: dict[str, None] = {}
    undecided = []
    for value in rest:
        option = spelled.get(same_label(value)) or (EXCLUDE if same_label(value) in NOT_KNOWN else None)
        if option is None:
            undecided.append(value)
        else:
            lines[option].append(value)
            changed[option] = None
    sure = [_line(option, lines[option]) for option in changed]
    choice = [_line(option, lines[option] + undecided) for option in (other, EXCLUDE)] if undecided else []
    _refuse(rest, groups, text, where, _fix(sure, choice))


def refuse_unmapped_classes(
    text: Iterable[str], classes: Mapping[str, str], exclude: Sequence[str], where: str
) -> None:
    """As :func:`refuse_unmapped`, for a mapping of values to several classes."""
    text = list(text)
    rest = _unnamed(text, [*classes, *exclude])
    if not rest:
        return
    spelled = {same_label(label): name for label, name in classes.items()}
    unknown = {same_label(label) for label in exclude} | NOT_KNOWN
    known, undecided, out = dict(classes), [], list(exclude)
    for value in rest:
        if (name := spelled.get(same_label(value))) is not None:
            known[value] = name
        elif same_label(value) in unknown:
            out.append(value)
        else:
            undecided.append(value)
    sure = [_class_line(known)] if len(known) > len(classes) else []
    sure += [_line(EXCLUDE, out)] if len(out) > len(exclude) else []
    both = (_class_line(known | dict.fromkeys(undecided, "CLASS")), _line(EXCLUDE, out + undecided))
    choice = list(both) if undecided else []
    groups = {"classes": list(classes), EXCLUDE: list(exclude)}
    _refuse(rest, groups, text, where, _fix(sure, choice))


def refuse_absent_classes(
    text: list[str], mapping: Mapping[str, float], names: Mapping[int, str], where: str
) -> None:
    """A class that no patient has cannot be learned: mostly a typing error."""
    seen = {mapping[key] for value in text if (key := label_key(value)) in mapping}
    for code, name in names.items():
        if float(code) not in seen:
            labels = [label for label, value in mapping.items() if value == code]
            near = nearest(labels[0], [v for v in map(label_key, text) if v not in mapping]) if labels else ""
            raise DataError(
                f"no patient has a value of class {name!r}{near}. "
                f"Values seen: {value_counts(map(label_key, text))}",
                where=where,
                fix="correct the label map, or drop the class or the task",
            )


def yaml_quoted(label: str) -> str:
    """A label as it must stand in YAML, which reads ``01`` as 1, ``010`` as 8 and ``no`` as false."""
    plain = re.fullmatch(r"[A-Za-z][\w+./-]*( [\w+./-]+)*", label)
    words = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
    number = re.fullmatch(r"0|[1-9][0-9]*", label)
    return label if number or (plain and label.lower() not in words) else json.dumps(label)


def _unnamed(text: Iterable[str], labels: Iterable[str]) -> list[str]:
    """Values that are no label of the study and do not stand for a missing one, sorted."""
    return sorted({label_key(value) for value in text} - set(labels) - MISSING)


def _refuse(
    rest: list[str], groups: Mapping[str, Sequence[str]], text: list[str], where: str, fix: str
) -> None:
    near = nearest(rest[0], [label for labels in groups.values() for label in labels])
    noun, verb = ("values", "are") if len(rest) > 1 else ("value", "is")
    raise DataError(
        f"{noun} {', '.join(map(repr, rest))} {verb} "
        f"neither a class nor excluded{near}. Values seen: {value_counts(map(label_key, text))}",
        where=where,
        fix=fix,
    )


def _fix(sure: Sequence[str], choice: Sequence[str]) -> str:
    """Lines for values that are known in another spelling, or say that nobody knows; a choice for the others."""
    offered = f"if that is what they mean, write {', '.join(sure)}"
    if not choice:
        return offered
    decide = f"decide and write one of: {' | '.join(choice)}"
    return f"{offered}; for the others, {decide}" if sure else decide


def _line(option: str, labels: Iterable[str]) -> str:
    return f"{option}: [{', '.join(map(yaml_quoted, labels))}]"


def _class_line(classes: Mapping[str, str]) -> str:
    pairs = (f"{yaml_quoted(label)}: {yaml_quoted(name)}" for label, name in classes.items())
    return f"classes: {{{', '.join(pairs)}}}"
