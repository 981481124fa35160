"""What a client declares when it joins: how many patients stand behind each group of parameters.

A group that nobody at a site can train gets no weight there: a head without labels, the encoder of a modality
that no labelled patient has, a Cox task in which no event was seen (its partial likelihood is constant, and
averaging its zero gradient would only shrink the others' steps).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from equipoise.platform.federation.vector import SHARED
from equipoise.platform.training.targets import is_missing

if TYPE_CHECKING:
    from equipoise.datasets.cases import Case
    from equipoise.platform.training.targets import Targets

#: The modality of tile features, beside the names of tables.
WSI = "wsi"


@dataclass(frozen=True)
class Manifest:
    """Counts of a client's training patients.

    Parameters
    ----------
    client
        Whose.
    n
        Training patients.
    labelled, events
        Task → patients with a label; survival task → events among them.
    counts
        Group of the schema → labelled patients that train it.
    flags
        What a person should know, in words.
    """

    client: str
    n: int
    labelled: Mapping[str, int]
    events: Mapping[str, int]
    counts: Mapping[str, int]
    flags: tuple[str, ...] = ()

    @property
    def learns(self) -> bool:
        """Whether there is anything to train here."""
        return any(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"flags": list(self.flags)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """The inverse."""
        return cls(**{**data, "flags": tuple(data["flags"])})


def declare(
    client: str,
    cases: Iterable[Case],
    targets: Targets,
    groups: Iterable[str],
    *,
    hides_modalities: bool = False,
) -> Manifest:
    """Count a client's patients, one at a time.

    Parameters
    ----------
    groups
        Groups of the schema.
    hides_modalities
        Whether the model hides modalities at random in training, so that tokens for absent ones are trained by
        everybody.
    """
    people, labelled, events = [], Counter[str](), Counter[str]()
    for case in cases:
        known = {head.name for head in targets.heads if not is_missing(case.targets.get(head.name))}
        there = {*case.omics, *([WSI] if len(case.bag) else [])}
        people.append((known, there))
        labelled.update(known)
        for head in targets.heads:
            if head.kind == "survival" and head.name in known:
                events[head.name] += int(case.targets[head.name][1] > 0)  # type: ignore[index]
    flags = [f"{task.name}: no label" for task in targets.heads if not labelled[task.name]]
    learnable = set()
    for head in targets.heads:
        if head.compares_patients and labelled[head.name] and not events[head.name]:
            flags.append(f"{head.name}: no event among {labelled[head.name]} patients, nothing to learn")
        elif labelled[head.name]:
            learnable.add(head.name)
    counts = dict.fromkeys(groups, 0)
    read = [name for kind, _, name in (group.partition(":") for group in counts) if kind == "modality"]
    flags += [f"{name}: no patient has it" for name in read if not any(name in there for _, there in people)]
    for known, there in people:
        useful = known & learnable
        for group in counts if useful else ():
            kind, _, name = group.partition(":")
            counts[group] += {
                SHARED: True,
                "task": name in useful,
                "modality": name in there,
                "absent": hides_modalities or name not in there,
            }[kind]
    tasks = [head.name for head in targets.heads]
    survival = [head.name for head in targets.heads if head.kind == "survival"]
    return Manifest(
        client,
        len(people),
        {task: labelled[task] for task in tasks},
        {task: events[task] for task in survival},
        counts,
        tuple(flags),
    )
