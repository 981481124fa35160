"""Builds the space of a study from registries and sections, narrowed by ``search.space``. Light: no torch, no NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from equipoise.models.slide_encoders.hidden_states import HiddenStates
from equipoise.platform.registry import entries, nearest
from equipoise.platform.search import federated_space
from equipoise.platform.search.params import Range
from equipoise.platform.search.space import (
    COMPONENTS,
    LOSS_WEIGHTS,
    SLOTS,
    Arm,
    Dimension,
    Space,
    takes_explicit_weights,
)
from equipoise.platform.search.trial_records import Value
from equipoise.platform.training.params import (
    BalancingParams,
    TrainingParams,
    adds_tasks,
    compares_gradients,
    model_refusal,
    refusal,
)

if TYPE_CHECKING:
    from equipoise.platform.search.params import SearchParams
    from equipoise.platform.study.schema import Study

#: Keys of ``search.space`` that choose arms.
ARM_KEYS = ("balancing", *SLOTS.values(), LOSS_WEIGHTS)

#: Slots of methods → where their entries are registered.
_REGISTRIES = {
    "weighting": "weightings",
    "aggregation": "aggregators",
    "strategy": "strategies",
    "fusion": "fusions",
    "modulation": "modulations",
}

#: Settings of ``training`` that say where and how often something runs, not what is learned.
_NOT_LEARNED = ("workers", "threads", "device", "amp", "probe")


class SearchSpaceError(ValueError):
    """``search.space`` asks for something that the study cannot do; the text names the key."""


def space_problems(study: Study, params: SearchParams) -> list[str]:
    """Why a search section makes no space for this study, one problem a line."""
    try:
        build_space(study, params)
    except SearchSpaceError as error:
        return [line.replace("search.space", "search: space", 1) for line in str(error).split("\n")]
    return []


def build_space(study: Study, params: SearchParams) -> Space:
    """The space that a study searches.

    Raises
    ------
    SearchSpaceError
        With all problems of ``search.space``, one a line.
    """
    given = dict(params.space)
    problems: list[str] = []
    if params.population and study.federation is not None:
        raise SearchSpaceError(
            f"search: scheduler {params.scheduler} changes settings of models that train in one place, epoch by epoch; "
            "trials of a study with a federation section train across sites: write another scheduler, or search the "
            "study without the section"
        )
    strategies, unfit = _strategies(study, given, problems)
    parts = {slot: _listed(given.pop(key)) for slot, key in _component_keys(study, given).items()}
    arms, refused = _arms(study, given, problems, population=params.population)
    arms = [made for arm in arms for made in _with_components(study, arm, parts, problems)]
    arms = [replace(arm, strategy=strategy) for arm in arms for strategy in strategies]
    dimensions = [*_training(study, given), *_of_entries(study, arms)]
    if params.population:
        dimensions = [d for d in dimensions if d.key == "training.lr"]
    dimensions = _narrowed(study, dimensions, arms, given, problems)
    if params.population and (changed := [d.name for d in dimensions if d.key != "training.lr"]):
        problems.append(
            f"search.space: scheduler {params.scheduler} changes training.lr and loss_weights of models that train; "
            f"{', '.join(changed)} cannot change: leave it out"
        )
    if params.population and (listed := [d.name for d in dimensions if len(d.choices) > 1]):
        problems.append(
            f"search.space.{listed[0]}: a population moves within a range; write loguniform: [a, b]"
        )
    if problems:
        raise SearchSpaceError("\n".join(problems))
    weighed = any(takes_explicit_weights(arm.weighting) for arm in arms)
    return Space(
        arms=tuple(arms),
        dimensions=tuple(dimensions),
        tasks=tuple(t.name for t in study.tasks) if weighed else (),
        refused=tuple(refused),
        refused_strategies=tuple(unfit),
    )


def _component_keys(study: Study, given: dict[str, Any]) -> dict[str, str]:
    """Slot → its key in the space, of components that a model has; another model may have a parameter of that name."""
    kinds = [str(kind) for kind in _listed(given.get(SLOTS["kind"], study.model.kind))]
    fields = [type(study.model).model_fields] if study.model.kind in kinds else []
    fields += [entries("models")[kind].params.model_fields for kind in kinds if kind in entries("models")]
    components = {name for kind in kinds if kind in entries("models") for name in _components(kind)}
    return {
        slot: SLOTS[slot]
        for slot in COMPONENTS
        if SLOTS[slot] in given and (slot in components or not any(slot in known for known in fields))
    }


def _components(kind: str) -> Iterable[str]:
    return entries("models")[kind].attribute("components")


def _strategies(
    study: Study, given: dict[str, Any], problems: list[str]
) -> tuple[Sequence[str | None], list[tuple[str, str]]]:
    """Strategies of a federation, None without one, and those it refuses; removes its key from ``given``."""
    key = SLOTS["strategy"]
    wish = _listed(given.pop(key)) if key in given else None
    if study.federation is not None:
        return federated_space.searchable_strategies(study, wish, given, problems)
    if wish is not None:
        problems.append(f"search.space.{key}: {federated_space.no_effect_reason(study, key, given)}")
    return [None], []


def _arms(
    study: Study, given: dict[str, Any], problems: list[str], *, population: bool
) -> tuple[list[Arm], list[tuple[str, str]]]:
    """Kinds of model x loss weightings x aggregators that can be combined; removes its keys from ``given``."""
    wishes = {key: _listed(given.pop(key)) for key in ARM_KEYS if key in given}
    kinds = [str(kind) for kind in wishes.get("model.kind", ())]
    chosen: list[str | None] = [*kinds] or [None]
    for kind in kinds:
        if kind not in entries("models"):
            problems.append(f"search.space.model.kind: no model {kind!r}{nearest(kind, entries('models'))}")
        elif getattr(entries("models")[kind].params, "reads", None) != type(study.model).reads:
            problems.append(f"search.space.model.kind: {kind} reads other data than {study.model.kind}")
    if len(study.tasks) < 2 and not adds_tasks(study.model):
        if balancing := [key for key in wishes if key != "model.kind"]:
            problems.append(f"search.space.{balancing[0]}: a study of one task has nothing to balance")
        return [Arm(kind) for kind in chosen], []
    if population and (fixed := [key for key in wishes if key != LOSS_WEIGHTS]):
        problems.append(f"search.space.{fixed[0]}: a population shares one model and one aggregator")
    pairs, refused = _pairs(study, wishes, problems, population=population)
    arms = []
    for name in chosen:
        for pair in pairs:
            reason = _refused_by_model(study, name, *pair)
            if reason is not None:
                refused.append((f"{name + ': ' if name else ''}{'+'.join(pair)}", reason))
                if "balancing" in wishes:
                    problems.append(f"search.space.balancing: {'+'.join(pair)} makes no sense: {reason}")
            else:
                arms.append(Arm(name, *pair))
    if not arms and not problems:
        problems.append(
            f"search.space.balancing: no method can balance the tasks of this model; {refused[-1][1]}"
        )
    return arms, refused


def _refused_by_model(study: Study, kind: str | None, weighting: str, aggregation: str) -> str | None:
    """Why a method cannot balance the tasks of a model: the study's, or one with its own defaults."""
    name = kind or study.model.kind
    if name not in entries("models"):
        return None  # said already
    try:
        model = study.model if name == study.model.kind else entries("models")[name].params.model_validate({})
    except ValidationError:
        return None  # a model that needs parameters is validated with them
    if takes_explicit_weights(weighting) and adds_tasks(model):
        return "it has weights for the tasks of the study, and losses of branches are tasks, too"
    return model_refusal(model, name, weighting, aggregation, at=study.balancing.at)


def _with_components(study: Study, arm: Arm, wishes: dict[str, list[Any]], problems: list[str]) -> list[Arm]:
    """An arm with every combination of the entries that its model is made of: those wished for, else the study's."""
    kind = arm.kind or study.model.kind
    if kind not in entries("models"):
        return [arm]  # said already
    components = entries("models")[kind].attribute("components")
    arms = [arm]
    for slot in COMPONENTS:
        wanted = [str(name) for name in wishes.get(slot, [])]
        if slot not in components:
            if wanted and arm.kind is None:
                problems.append(f"search.space.{SLOTS[slot]}: model {kind} has no {slot}")
            continue
        same = kind == study.model.kind
        default = (
            getattr(study.model, slot) if same else entries("models")[kind].params.model_fields[slot].default
        )
        known = entries(_REGISTRIES[slot])
        unknown = [
            f"search.space.{SLOTS[slot]}: no {slot} {name!r}{nearest(name, known)}"
            for name in wanted
            if name not in known
        ]
        problems.extend(line for line in unknown if line not in problems)
        arms = [replace(one, **{slot: name}) for one in arms for name in wanted or [default]]
    return arms


def _pairs(
    study: Study, wishes: dict[str, list[Any]], problems: list[str], *, population: bool
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs (weighting, aggregator) that can be combined, and the others with the reason."""
    explicit = wishes.get(LOSS_WEIGHTS, [])
    if explicit not in ([], ["simplex"]):
        problems.append(f"search.space.{LOSS_WEIGHTS}: write simplex, or leave it out")
    by_hand = next(name for name in entries("weightings") if takes_explicit_weights(name))
    if population:
        return [(by_hand, study.balancing.aggregation)], []
    methods = [str(name).partition("+") for name in wishes.get("balancing", [])]
    alone = BalancingParams().aggregation  # of a method that names a weighting only
    whole = [(weighting.strip(), aggregation.strip() or alone) for weighting, _, aggregation in methods]
    if explicit and not {"balancing", "balancing.weighting", "balancing.aggregation"} & set(wishes):
        return [(by_hand, alone)], []
    weightings = wishes.get("balancing.weighting", list(entries("weightings")))
    aggregators = wishes.get("balancing.aggregation", list(entries("aggregators")))
    if "balancing" in wishes and len(wishes.keys() & {"balancing.weighting", "balancing.aggregation"}):
        problems.append(
            "search.space.balancing: names whole methods; leave balancing.weighting and .aggregation out"
        )
    wanted = whole or [(str(w), str(a)) for w in weightings for a in aggregators]
    if explicit and not any(
        weighting in entries("weightings") and takes_explicit_weights(weighting) for weighting, _ in wanted
    ):
        wanted.append((by_hand, alone))
    kept, refused = [], []
    for weighting, aggregation in dict.fromkeys(wanted):
        unknown = [
            f"search.space.balancing: no {kind[:-1]} {name!r}{nearest(name, entries(kind))}"
            for kind, name in (("weightings", weighting), ("aggregators", aggregation))
            if name not in entries(kind)
        ]
        problems.extend(line for line in unknown if line not in problems)
        if unknown:
            continue
        reason = refusal(
            weighting, aggregation, at=study.balancing.at, every=study.balancing.every
        ) or federated_space.method_refusal(study, weighting, aggregation)
        if reason:
            refused.append((f"{weighting}+{aggregation}", reason))
            if whole:
                problems.append(f"search.space.balancing: {weighting}+{aggregation} makes no sense: {reason}")
        else:
            kept.append((weighting, aggregation))
    if not kept and not problems:
        problems.append("search.space.balancing: none of these combinations makes sense")
    return kept, refused


def _training(study: Study, given: dict[str, Any]) -> list[Dimension]:
    """Settings of the training loop that are searched unless the study says otherwise."""
    training, key = study.training, federated_space.LR
    dimensions = [
        dimension
        for name, field in TrainingParams.model_fields.items()
        if (dimension := _searchable(f"training.{name}", f"training.{name}", field, getattr(training, name)))
    ]
    if study.federation is not None and study.federation.local.lr is not None:
        local = study.federation.local
        local_lr = _searchable(key, key, type(local).model_fields["lr"], local.lr)
        dimensions += [local_lr] if local_lr is not None else []
    compared = any(task.type == "survival" and task.likelihood == "cox" for task in study.tasks)
    if training.batch != "full" and not federated_space.uses_client_batches(study):
        size = training.batch if training.batch != "auto" else 8 if compared else 1
        least = max(2 if compared else 1, training.workers)  # workers share a batch
        sizes = sorted({max(least, round(size * factor)) for factor in (0.5, 1, 2)})
        dimensions.append(Dimension("training.batch", "training.batch", tuple(sizes), default=size))
    if (tiles := training.bag_tiles) is not None:
        values = tuple(sorted({max(1, tiles // 2), tiles, 2 * tiles}))
        dimensions.append(Dimension("training.bag_tiles", "training.bag_tiles", values, default=tiles))
    return [d for d in dimensions if federated_space.no_effect_reason(study, d.name, given) is None]


def _of_entries(study: Study, arms: Sequence[Arm]) -> list[Dimension]:
    """Searchable parameters of the models and methods that occur in the arms."""
    study_kind, dimensions = study.model.kind, []
    kinds = list(dict.fromkeys(arm.kind for arm in arms))
    for kind in kinds:
        start = {key: value for key, value in study.model.model_dump().items() if key != "kind"}
        of_study = kind in (None, study_kind)
        dimensions += _of_entry(
            entries("models")[kind or study_kind].params
            if (kind or study_kind) in entries("models")
            else BaseModel,
            start if of_study else {},
            f"model.{kind}." if kind else "model.",
            "model.",
            ("kind", kind) if kind else None,
            skip=() if len(_modalities(study)) > 1 else ("modality_dropout",),
            stored=study.model.hidden_states,
            shared=_compares(arms, kind),
        )
    for slot, registry in _REGISTRIES.items():
        section = SLOTS[slot].partition(".")[0]
        written = getattr(study, section)
        for name in dict.fromkeys(getattr(arm, slot) for arm in arms):
            if name in entries(registry):
                same = name == getattr(written, slot, None)
                params = getattr(written, f"{slot}_params") if same else {}
                middle = f"{slot}." if slot in COMPONENTS else ""  # a model may have the name of a fusion
                dimensions += _of_entry(
                    entries(registry)[name].params,
                    params,
                    f"{section}.{middle}{name}.",
                    f"{section}.{slot}_params.",
                    (slot, name),
                )
    return dimensions


def _modalities(study: Study) -> set[str]:
    """Modalities that the model reads and some cohort has; modality dropout needs two of them."""
    available: set[str] = {modality for cohort in study.cohorts for modality in cohort.omics}
    available |= {"clinical"} if study.tables.clinical else set()
    available |= {"wsi"} if any(cohort.slides is not None for cohort in study.cohorts) else set()
    return available & study.reads


def _of_entry(
    params: type[BaseModel],
    given: dict[str, Any],
    name: str,
    key: str,
    where: tuple[str, str] | None,
    skip: tuple[str, ...] = (),
    stored: HiddenStates | None = None,
    shared: bool = False,
) -> list[Dimension]:
    """Dimensions of an entry; of a model, only values that read ``stored`` and, if ``shared``, let tasks share some."""
    dimensions = []
    for field_name, field in params.model_fields.items():
        default = given.get(field_name, field.get_default(call_default_factory=True))
        dimension = _searchable(name + field_name, key + field_name, field, default, where)
        if dimension is None or field_name in skip:
            continue
        if dimension.choices:  # for instance, 5 heads do not divide a width of 384: keep valid choices only
            tried = ((value, given | {field_name: value}) for value in dimension.choices)
            valid = [
                value
                for value, values in tried
                if _fits(params, values, shared=shared) and _reads(params, values, stored)
            ]
            dimension = _with(dimension, choices=tuple(valid))
            if valid:
                dimensions.append(dimension)
        # A variant of a method may fix the parameter.
        elif all(_fits(params, given | {field_name: dimension.value_at(end)}) for end in (0.0, 1.0)):
            dimensions.append(dimension)
    return dimensions


def _searchable(
    name: str, key: str, field: Any, default: Any, where: tuple[str, str] | None = None
) -> Dimension | None:
    """The dimension of a field with a search range."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    search = extra.get("search")
    slot, entry = where or (None, None)
    if search is None:
        return None
    if "choice" in search:
        return Dimension(name, key, tuple(search["choice"]), slot=slot, entry=entry, default=default)
    ((kind, (low, high)),) = search.items()
    whole = _is_whole(field.annotation)
    return Dimension(name, key, (), low, high, kind == "loguniform", whole, slot, entry, default)


def _narrowed(
    study: Study, dimensions: list[Dimension], arms: Sequence[Arm], given: dict[str, Any], problems: list[str]
) -> list[Dimension]:
    """Dimensions with the study's values instead of the generated ones, and the dimensions that the study adds."""
    known = {dimension.name: dimension for dimension in dimensions}
    for name, wish in given.items():
        if reason := federated_space.no_effect_reason(study, name, given):
            problems.append(f"search.space.{name}: {reason}")
            continue
        dimension = known.get(name) or _added(study, name)
        if dimension is None:
            problems.append(
                f"search.space.{name}: not something that is searched here; known: "
                f"{', '.join([*ARM_KEYS, *(d.name for d in dimensions if not d.slot)])} and parameters of the searched "
                f"methods{nearest(name, [*ARM_KEYS, *known])}"
            )
            continue
        if isinstance(wish, Range):
            low, high = wish.bounds
            if isinstance(dimension.default, str | bool):
                problems.append(f"search.space.{name}: takes names, not a range; write a list")
                continue
            dimension = _with(dimension, choices=(), low=low, high=high, log=wish.log)
        else:
            dimension = _with(dimension, choices=tuple(_listed(wish)))
        problems += [f"search.space.{name}: {line}" for line in _unfit(study, dimension, arms)]
        known[name] = dimension
    return list(known.values())


def _added(study: Study, name: str) -> Dimension | None:
    """A setting that is searched only on request: of ``training``, of the study's model, ``balancing.rescale``, of the
    federation."""
    section, _, field = name.partition(".")
    if section == "federation":
        return federated_space.extra_dimension(study, name)
    sections = {"training": study.training, "model": study.model, "balancing": study.balancing}
    if section not in sections or field in _NOT_LEARNED or field not in type(sections[section]).model_fields:
        return None
    if section == "balancing" and field != "rescale":
        return None
    whole = _is_whole(type(sections[section]).model_fields[field].annotation)
    return Dimension(name, name, whole=whole, default=getattr(sections[section], field))


def _unfit(study: Study, dimension: Dimension, arms: Sequence[Arm]) -> list[str]:
    """Why values are not allowed; each is validated in its section."""
    values = dimension.choices or (dimension.value_at(0.0), dimension.value_at(1.0))
    section, _, field = dimension.key.partition(".")
    given: dict[str, Any] = {}
    params: type[BaseModel] = TrainingParams
    if section == "training":
        given = study.training.model_dump()
    elif section == "model" and dimension.slot in COMPONENTS:
        field = field.partition(".")[2]
        params = entries(_REGISTRIES[str(dimension.slot)])[str(dimension.entry)].params
    elif section == "model":
        same_kind = dimension.entry in (None, study.model.kind)
        params = type(study.model) if same_kind else entries("models")[str(dimension.entry)].params
        given = study.model.model_dump() if same_kind else {}
    elif dimension.slot is not None:
        field = field.partition(".")[2]
        params = entries(_REGISTRIES[dimension.slot])[str(dimension.entry)].params
    elif section == "federation":
        return []  # validated with every strategy
    else:
        params, given = BalancingParams, study.balancing.model_dump()
    lines = []
    shared = section == "model" and dimension.slot not in COMPONENTS and _compares(arms, dimension.entry)
    for value in values:
        try:
            valid = params.model_validate(given | {field: value})
        except ValidationError as error:
            lines.append(f"{value}: {error.errors()[0]['msg']}")
            continue
        if shared and not getattr(valid, "shares_parameters", True):
            lines.append(
                f"{value}: tasks then share no parameter, whose gradients some of the searched methods compare: name "
                "methods in balancing that look at losses, with aggregation none"
            )
        if section == "model" and not _reads(params, given | {field: value}, study.model.hidden_states):
            lines.append(
                f"{value}: hidden states of the slide encoder are stored for the settings of model:, not for these; "
                "write cache: false there, or search another setting"
            )
    return lines


def _reads(params: type[BaseModel], values: dict[str, Any], stored: HiddenStates | None) -> bool:
    """Whether the hidden states that a model with these valid parameters reads, if any, are those of the study."""
    wanted = getattr(params.model_validate(values), "hidden_states", None)
    return wanted is None or wanted == stored


def _fits(params: type[BaseModel], values: dict[str, Any], *, shared: bool = False) -> bool:
    try:
        valid = params.model_validate(values)
    except ValidationError:
        return False
    return not shared or getattr(valid, "shares_parameters", True)


def _compares(arms: Iterable[Arm], kind: str | None) -> bool:
    """Whether a method of an arm of this kind of model compares gradients of tasks."""
    return any(
        compares_gradients(arm.weighting, arm.aggregation)
        for arm in arms
        if arm.kind == kind and arm.weighting is not None and arm.aggregation is not None
    )


def _is_whole(annotation: Any) -> bool:
    """``int``, or a union that holds it and no ``float``."""
    kinds = {annotation, *get_args(annotation)}
    return int in kinds and float not in kinds


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _with(dimension: Dimension, **changes: Any) -> Dimension:
    result = replace(dimension, **changes)
    if result.whole and result.choices:  # PyYAML and ranges give 8.0 for 8
        whole: list[Value] = [
            int(v) if isinstance(v, float) and math.isfinite(v) and v == int(v) else v for v in result.choices
        ]
        result = replace(result, choices=tuple(whole))
    return result
