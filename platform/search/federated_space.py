"""The part of a search space that depends on the federation: strategies and the settings of clients. Light: no torch.

A study with a ``federation`` section is searched as a federation. Its space has other settings than that of training in
one place: a federation is measured in rounds, and every optimiser starts again in each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from equipoise.platform.federation.privacy.compatibility import balancing_refusals
from equipoise.platform.registry import entries, get, nearest
from equipoise.platform.search.configuration import merge_federation_config
from equipoise.platform.search.params import Range
from equipoise.platform.search.space import SLOTS, Config, Dimension

if TYPE_CHECKING:
    from equipoise.platform.federation.params import FederationParams
    from equipoise.platform.study.schema import Study

LR, BATCH = "federation.local.lr", "federation.local.batch"

#: Settings of ``training`` that clients ignore → the settings of a federation that replace them.
REPLACED_BY = {
    "training.epochs": "federation.rounds and federation.local.epochs",
    "training.min_epochs": "federation.rounds",
    "training.patience": "federation.patience",
    "training.monitor": "federation.keep",
    "training.weight_decay": "federation.local.weight_decay",
    "training.schedule": "federation.local.schedule",
}

#: Settings of the section that are searched where the study asks for it, beside those of ``local``.
_SECTION = ("rounds", "server_aggregation", "weights")


def no_effect_reason(study: Study, name: str, given: Mapping[str, Any]) -> str | None:
    """Why a setting has no effect on the trials of this study; None if it has, or is not known here.

    Parameters
    ----------
    name
        Key of ``search.space``.
    given
        All of ``search.space``.
    """
    section, _, field = name.partition(".")
    params = study.federation
    if section == "federation" and params is None:
        return "the study has no federation section, its trials train in one place"
    if section != "training" or params is None:
        return None
    if name in REPLACED_BY:
        return f"clients of a federation do not use it; use {REPLACED_BY[name]}"
    if field == "lr" and (params.local.lr is not None or LR in given):
        return f"clients use {LR}"
    if field == "batch" and (params.local.batch != "auto" or BATCH in given):
        return f"clients use {BATCH}"
    return None


def uses_client_batches(study: Study) -> bool:
    """Whether ``auto`` makes one batch of a client's patients, as it does for Cox's model without tiles."""
    if study.federation is None or study.reads_slides:
        return False
    compared = any(task.type == "survival" and task.likelihood == "cox" for task in study.tasks)
    return compared and study.training.batch == study.federation.local.batch == "auto"


def extra_dimension(study: Study, name: str) -> Dimension | None:
    """A setting of the section that is searched only on request."""
    params = study.federation
    section, _, field = name.partition(".")
    if section != "federation" or params is None:
        return None
    head, _, local = field.partition(".")
    if head == "local" and local in type(params.local).model_fields:
        # What clients use where the section says nothing: the first trial stays the study as written.
        default = getattr(params.in_training(study.training).local, local)
        return Dimension(name, name, whole=local in ("epochs", "steps"), default=default)
    if field in _SECTION:
        return Dimension(
            name, name, whole=field == "rounds", default=getattr(params.in_training(study.training), field)
        )
    return None


def searchable_strategies(
    study: Study, wished: Sequence[Any] | None, given: Mapping[str, Any], problems: list[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Strategies that work with this federation and every searched value, and the others with the reason.

    Parameters
    ----------
    wished
        Strategies that the study names, which must all work; None: all of the registry.
    given
        ``search.space`` without the keys that choose arms.
    problems
        List to which problems are appended.
    """
    params = study.federation
    assert params is not None
    names = list(entries("strategies")) if wished is None else [str(name) for name in wished]
    tried = {name: _ends(value) for name, value in given.items() if extra_dimension(study, name) is not None}
    lengths = [f"federation.local.{name}" for name in ("epochs", "steps")]
    both = [f"search.space: name {' or '.join(lengths)}, not both"] if tried.keys() >= set(lengths) else []
    if errors := [*_unknown(names), *_unfit(params, tried), *both]:
        problems += errors
        return names, []
    kept, refused = [], []
    for name in names:
        reason = _refusal(params, name, tried)
        if reason is None and wished is None and name != params.strategy:
            needs = get("strategies", name).attribute("searched_if_named")
            reason = f"{needs}: name it to search it" if needs else None
        if reason is None:
            kept.append(name)
        elif wished is None:
            refused.append((name, reason))
        else:
            problems.append(f"search.space.{SLOTS['strategy']}: {name}: {reason}")
    if not kept and wished is None:
        problems.append(
            f"search.space: no strategy works with this federation; {refused[0][0]}: {refused[0][1]}"
        )
    return kept, refused


def method_refusal(study: Study, weighting: str, aggregation: str) -> str | None:
    """Why clients of this federation cannot balance like this; None if they can."""
    if study.federation is None:
        return None
    refusals = balancing_refusals(study.federation.privacy, weighting, aggregation)
    return refusals[0] if refusals else None


def _unknown(names: Sequence[str]) -> list[str]:
    known = entries("strategies")
    return [
        f"search.space.{SLOTS['strategy']}: no strategy {name!r}{nearest(name, known)}"
        for name in names
        if name not in known
    ]


def _unfit(params: FederationParams, tried: Mapping[str, Sequence[Any]]) -> list[str]:
    """Values that are invalid for their setting with any strategy."""
    lines = []
    known = entries("server_aggregations")
    for name, values in tried.items():
        for value in values:
            if name == "federation.server_aggregation" and value not in known:
                lines.append(
                    f"search.space.{name}: no server aggregation {value!r}{nearest(str(value), known)}"
                )
                continue
            error = _error(params, {name: value})
            if error is not None and error["loc"]:  # not of the section as a whole
                lines.append(f"search.space.{name}: {value}: {_message(error)}")
    return lines


def _refusal(params: FederationParams, strategy: str, tried: Mapping[str, Sequence[Any]]) -> str | None:
    """Why a strategy does not work with the section, or with one of the values."""
    fixed: Config = {name: values[0] for name, values in tried.items() if len(values) == 1}
    one: list[Config] = [{name: value} for name, values in tried.items() for value in values]
    for changes in [{}, *one]:
        error = _error(params, fixed | changes | {SLOTS["strategy"]: strategy})
        if error is not None:
            said = ", ".join(f"{name.removeprefix('federation.')} {value}" for name, value in changes.items())
            return (
                f"with {said}: {_message(error)}"
                if said and changes.items() - fixed.items()
                else _message(error)
            )
    return None


def _error(params: FederationParams, config: Config) -> Any:
    """The first validation error of the section with a configuration applied."""
    try:
        type(params).model_validate(merge_federation_config(params.model_dump(mode="json"), config))
    except ValidationError as error:
        return error.errors()[0]
    return None


def _message(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _ends(wish: Any) -> list[Any]:
    """The requested values; for a range its ends, as integers where they are whole."""
    if isinstance(wish, Range):
        return [int(end) if end == int(end) else end for end in wish.bounds]
    return list(wish) if isinstance(wish, list) else [wish]
