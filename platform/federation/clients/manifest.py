"""What a client declares when it joins: how many of its patients can train each group of parameters.

A group that no patient of a site can train gets weight 0 there: a head without labels, the encoder of a modality
that no labelled patient has, a Cox task without an observed event (its partial likelihood is constant, and
averaging its zero gradient would only shrink the other clients' steps).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from equipoise.platform.federation.vector import SHARED
from equipoise.platform.training.targets import is_missing

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case
    from equipoise.platform.training.targets import Targets

#: The modality of tile features, beside the names of tables.
WSI = "wsi"


@dataclass(frozen=True)
class ClientManifest:
    """Counts of a client's training patients.

    Parameters
    ----------
    client
        Name of the client.
    n
        Training patients.
    labelled, events
        Task → patients with a label; survival task → events among them.
    counts
        Group of the schema → labelled patients that train it.
    flags
        Remarks for people.
    """

    client: str
    n: int
    labelled: Mapping[str, int]
    events: Mapping[str, int]
    counts: Mapping[str, int]
    flags: tuple[str, ...] = ()

    @property
    def learns(self) -> bool:
        """Whether the client can train any group."""
        return any(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"flags": list(self.flags)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClientManifest:
        """The inverse."""
        return cls(**{**data, "flags": tuple(data["flags"])})


def declare(
    client: str,
    cases: Iterable[Case],
    targets: Targets,
    groups: Iterable[str],
    *,
    hides_modalities: bool = False,
) -> ClientManifest:
    """Count a client's patients, reading one case at a time.

    Parameters
    ----------
    groups
        Groups of the schema.
    hides_modalities
        Whether the model hides modalities at random in training, so that all patients train the tokens for absent
        ones.
    """
    patients, labelled, events = [], Counter[str](), Counter[str]()
    for case in cases:
        known = {head.name for head in targets.heads if not is_missing(case.targets.get(head.name))}
        modalities = {*case.omics, *([WSI] if len(case.bag) else [])}
        patients.append((known, modalities))
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
    flags += [
        f"{name}: no patient has it" for name in read if not any(name in known for _, known in patients)
    ]
    for known, modalities in patients:
        tasks_here = known & learnable
        for group in counts if tasks_here else ():
            kind, _, name = group.partition(":")
            counts[group] += {
                SHARED: True,
                "task": name in tasks_here,
                "modality": name in modalities,
                "absent": hides_modalities or name not in modalities,
            }[kind]
    tasks = [head.name for head in targets.heads]
    survival = [head.name for head in targets.heads if head.kind == "survival"]
    return ClientManifest(
        client,
        len(patients),
        {task: labelled[task] for task in tasks},
        {task: events[task] for task in survival},
        counts,
        tuple(flags),
    )
