"""Keys of a study that have another name than in the version before.

The earlier spelling is understood for one version, with a warning: in a study file, after ``--set``, and as the name of
a searched setting. What runs wrote to disk under an earlier spelling is compared under the present one.
"""

import logging
from collections.abc import Mapping
from typing import Any

from equipoise.platform.errors import StudyError

#: Earlier key → key now; both in full.
RENAMED = {
    "federation.rule": "federation.server_aggregation",
    "federation.rule_params": "federation.server_aggregation_params",
    "federation.gate": "federation.validation",
    "federation.bench_after": "federation.exclude_after",
    "features.region_tiles": "features.chunk_tiles",
}

#: Settings that the version before did not have → the value with which everything is as it was then. A record without
#: the key equals one with this value. ``model`` is the section of a study, ``model_params`` that of a recipe.
ADDED: dict[str, Any] = {
    "evaluation.operating_points": [
        {"metric": "sensitivity", "value": 0.95, "chosen_on": "val"},
        {"metric": "specificity", "value": 0.95, "chosen_on": "val"},
    ],
    "evaluation.horizon": None,
    "evaluation.subgroups": [],
    "balancing.at": "parameters",
    "balancing.every": 1,
    "federation.candidates": [],
    "federation.keep": "last",
    "features.stain": "brightfield",
    "weighting_params.reach": 0,
    "rna.standardise": "training",
    "rna.pseudocount": 1.0,
    "cnv.pseudocount": 1.0,
    "mutation.pseudocount": 1.0,
    "rna.unknown_genes": "keep",
    "cnv.unknown_genes": "keep",
    "mutation.unknown_genes": "keep",
    "time.otherwise": None,
    "training.members": 1,
    "training.risk_sets": "batch",
    "training.order": "shuffled",
    "training.task_sampling": None,
    "training.start": None,
    "model.input_dropout": 0.0,
    "model.output_scale": 1.0,
    "model_params.input_dropout": 0.0,
    "model_params.output_scale": 1.0,
    "model.cache": False,
    "model.prototypes": None,
    "model.class_balanced_dropout": False,
    "model_params.class_balanced_dropout": False,
    "model_params.cache": False,
    "model_params.prototypes": None,
}

_LAST_NAMES = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in RENAMED.items()}

log = logging.getLogger("equipoise")


def is_as_before(section: str, key: str, value: Any) -> bool:
    """Whether a setting that an earlier record of this section lacks has the value that changes nothing.

    >>> is_as_before("tables.rna", "standardise", "training"), is_as_before("training", "members", 5)
    (True, False)
    """
    name = f"{section.rpartition('.')[2]}.{key}"
    return name in ADDED and ADDED[name] == value


def current_key(key: str, where: str = "") -> str:
    """A dotted key under its present name; an earlier one is reported as such if ``where`` it stands is given.

    >>> current_key("federation.gate.norm_factor")
    'federation.validation.norm_factor'
    """
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            if where:
                log.warning(
                    "%s: %s is now called %s; the earlier name will go in the next version", where, old, new
                )
            return new + key[len(old) :]
    return key


def current_study(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The content of a study file with present names, also of the settings that ``search.space`` names.

    Raises
    ------
    StudyError
        If a key stands under both names.
    """
    result = dict(data)
    for old, new in RENAMED.items():
        section, _, last = old.partition(".")
        if isinstance(result.get(section), Mapping) and last in result[section]:
            result[section] = _renamed(result[section], {last: new.partition(".")[2]}, f"{section}.", where)
    search = result.get("search")
    if isinstance(search, Mapping) and isinstance(search.get("space"), Mapping):
        names = {str(key): current_key(str(key)) for key in search["space"]}
        changed = {old: new for old, new in names.items() if old != new}
        result["search"] = {**search, "space": _renamed(search["space"], changed, "search.space: ", where)}
    return result


def _renamed(section: Mapping[str, Any], names: Mapping[str, str], before: str, where: str) -> dict[str, Any]:
    for old, new in names.items():
        if new in section:
            raise StudyError(
                f"{before}{old} is the earlier name of {before}{new}, and both are given",
                where=where,
                fix=f"remove {old}",
            )
        log.warning(
            "%s: %s%s is now called %s%s; the earlier name will go in the next version",
            where,
            before,
            old,
            before,
            new,
        )
    return {names.get(key, key): value for key, value in section.items()}


def current_record(stored: Any) -> Any:
    """Settings that an earlier run wrote to disk, nested in any way, under present names."""
    if isinstance(stored, Mapping):
        return {
            _LAST_NAMES.get(key, current_key(key)): current_record(value) for key, value in stored.items()
        }
    return [current_record(item) for item in stored] if isinstance(stored, list) else stored
