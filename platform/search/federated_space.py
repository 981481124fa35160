"""What a federation lets a search vary: strategies that it accepts, settings that its clients use. Light: no torch.

A study with a ``federation`` section is searched as a federation, so that its space has other settings than that of
training in one place: nothing ends early there and every optimiser begins anew in a round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from equipoise.platform.federation.privacy.combinations import record_level_refusals
from equipoise.platform.registry import entries, nearest
from equipoise.platform.search.configuration import federation_of
from equipoise.platform.search.params import Interval
from equipoise.platform.search.space import SLOTS, Config, Dimension

if TYPE_CHECKING:
    from equipoise.platform.federation.params import FederationParams
    from equipoise.platform.study import Study

LR, BATCH = "federation.local.lr", "federation.local.batch"

#: Settings of ``training`` that clients do not look at → what a federation has in their place.
IN_PLACE = {
    "training.epochs": "federation.rounds and federation.local.epochs",
    "training.min_epochs": "federation.rounds, for nothing stops early",
    "training.patience": "federation.rounds, for nothing stops early",
    "training.monitor": "federation.rounds, for nothing stops early",
    "training.weight_decay": "federation.local.weight_decay",
    "training.schedule": "federation.local.schedule",
}

#: Strategies that ask for more than the section can tell; searched where the study names them.
_IF_NAMED = {
    "fedbuff": "needs as many clients as its buffer has places: name it to search it",
    "fedbn": "needs a model with normalisation layers: name it to search it",
    "fedper": "needs a model with parameters that tasks share: name it to search it",
}

#: Settings of the section that are searched where the study asks for it, beside those of ``local``.
_SECTION = ("rounds", "rule", "weights")


def out_of_place(study: Study, name: str, given: Mapping[str, Any]) -> str | None:
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
    if name in IN_PLACE:
        return f"clients of a federation do not use it; there is {IN_PLACE[name]}"
    if field == "lr" and (params.local.lr is not None or LR in given):
        return f"clients use {LR}"
    if field == "batch" and (params.local.batch != "auto" or BATCH in given):
        return f"clients use {BATCH}"
    return None


def whole_site_batches(study: Study) -> bool:
    """Whether ``auto`` makes one batch of a client's patients, as it does for Cox's model without tiles."""
    if study.federation is None or study.reads_slides:
        return False
    compared = any(task.type == "survival" and task.likelihood == "cox" for task in study.tasks)
    return compared and study.training.batch == study.federation.local.batch == "auto"


def added(study: Study, name: str) -> Dimension | None:
    """A setting of the section that is not searched by itself."""
    params = study.federation
    section, _, field = name.partition(".")
    if section != "federation" or params is None:
        return None
    head, _, local = field.partition(".")
    if head == "local" and local in type(params.local).model_fields:
        default = getattr(params.local, local)
        # What clients use where the section says nothing: the first trial stays the study as written.
        default = study.training.lr if name == LR and default is None else default
        return Dimension(name, name, whole=local in ("epochs", "steps"), default=default)
    if field in _SECTION:
        return Dimension(name, name, whole=field == "rounds", default=getattr(params, field))
    return None


def strategies(
    study: Study, wished: Sequence[Any] | None, given: Mapping[str, Any], problems: list[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Strategies that go with this federation and with every value that is searched, and the others with the reason.

    Parameters
    ----------
    wished
        Those that the study names, which have to fit; None: all of the registry.
    given
        ``search.space`` without what chooses arms.
    problems
        Appended to.
    """
    params = study.federation
    assert params is not None
    names = list(entries("strategies")) if wished is None else [str(name) for name in wished]
    tried = {name: _ends(wish) for name, wish in given.items() if added(study, name) is not None}
    lengths = [f"federation.local.{name}" for name in ("epochs", "steps")]
    both = [f"search.space: name {' or '.join(lengths)}, not both"] if tried.keys() >= set(lengths) else []
    if found := [*_unknown(names), *_unfit(params, tried), *both]:
        problems += found
        return names, []
    kept, refused = [], []
    for name in names:
        reason = _refusal(params, name, tried)
        if reason is None and wished is None and name != params.strategy:
            reason = _IF_NAMED.get(name)
        if reason is None:
            kept.append(name)
        elif wished is None:
            refused.append((name, reason))
        else:
            problems.append(f"search.space.{SLOTS['strategy']}: {name}: {reason}")
    if not kept and wished is None:
        problems.append(
            f"search.space: no strategy goes with this federation; {refused[0][0]}: {refused[0][1]}"
        )
    return kept, refused


def method_refusal(study: Study, weighting: str, aggregation: str) -> str | None:
    """Why clients of this federation cannot balance like this; None if they can."""
    if study.federation is None or study.federation.privacy.record_level is None:
        return None
    found = record_level_refusals((), (), weighting=weighting, aggregation=aggregation)
    return found[0] if found else None


def _unknown(names: Sequence[str]) -> list[str]:
    known = entries("strategies")
    return [
        f"search.space.{SLOTS['strategy']}: no strategy {name!r}{nearest(name, known)}"
        for name in names
        if name not in known
    ]


def _unfit(params: FederationParams, tried: Mapping[str, Sequence[Any]]) -> list[str]:
    """Values that are none of their setting, whatever the strategy."""
    lines = []
    rules = entries("site_rules")
    for name, values in tried.items():
        for value in values:
            if name == "federation.rule" and value not in rules:
                lines.append(f"search.space.{name}: no rule {value!r}{nearest(str(value), rules)}")
                continue
            error = _error(params, {name: value})
            if error is not None and error["loc"]:  # not of the section as a whole
                lines.append(f"search.space.{name}: {value}: {_words(error)}")
    return lines


def _refusal(params: FederationParams, strategy: str, tried: Mapping[str, Sequence[Any]]) -> str | None:
    """Why a strategy does not go with the section, or with one of the values."""
    fixed: Config = {name: values[0] for name, values in tried.items() if len(values) == 1}
    one: list[Config] = [{name: value} for name, values in tried.items() for value in values]
    for changes in [{}, *one]:
        error = _error(params, fixed | changes | {SLOTS["strategy"]: strategy})
        if error is not None:
            said = ", ".join(f"{name.removeprefix('federation.')} {value}" for name, value in changes.items())
            return (
                f"with {said}: {_words(error)}" if said and changes.items() - fixed.items() else _words(error)
            )
    return None


def _error(params: FederationParams, config: Config) -> Any:
    """The first error of the section with a configuration put in."""
    try:
        type(params).model_validate(federation_of(params.model_dump(mode="json"), config))
    except ValidationError as error:
        return error.errors()[0]
    return None


def _words(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _ends(wish: Any) -> list[Any]:
    """The values of a wish; of a range its ends, whole where they are."""
    if isinstance(wish, Interval):
        return [int(end) if end == int(end) else end for end in wish.bounds]
    return list(wish) if isinstance(wish, list) else [wish]
