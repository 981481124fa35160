"""From a configuration to a study and back, and the name of a configuration. Light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from equipoise.platform.registry import get
from equipoise.platform.search.space import COMPONENTS, LOSS_WEIGHTS, SLOTS, Arm, Config, Space

if TYPE_CHECKING:
    from equipoise.platform.study.schema import Study


def trial_label(config: Config) -> str:
    """Text for a trial's name: the methods, else the model, else nothing; components of the model; the strategy."""
    parts = str(config.get(SLOTS["kind"], ""))
    if SLOTS["weighting"] in config:
        parts = f"{config[SLOTS['weighting']]}+{config[SLOTS['aggregation']]}"
    others = [config.get(SLOTS[slot]) for slot in (*COMPONENTS, "strategy")]
    return "-".join(str(part) for part in (parts, *others) if part)


def study_from_config(settings: dict[str, Any], config: Config) -> Study:
    """The study of these resolved settings with a configuration applied, without its ``search`` section.

    Raises
    ------
    ValueError
        Raised by pydantic, if the settings contradict each other.
    """
    from equipoise.platform.study.schema import Study

    return Study.model_validate(merge_config(settings, config))


def merge_config(settings: dict[str, Any], config: Config) -> dict[str, Any]:
    """Resolved settings with a configuration applied; the given settings are not changed.

    Hyper-parameters of a method or model other than the study's own start from its defaults.
    """
    return settings | {
        "training": settings["training"] | _of_section(config, "training"),
        "model": _model(settings["model"], config),
        "balancing": _balancing(settings["balancing"], config),
        "federation": merge_federation_config(settings["federation"], config),
        "search": None,
    }


def config_from_study(study: Study, space: Space) -> Config:
    """The study as written, as a configuration of the space: the configuration of the first trial."""
    strategy = study.federation.strategy if study.federation is not None else None
    parts = {slot: getattr(study.model, slot, None) for slot in COMPONENTS}
    study_arm = Arm(
        study.model.kind, study.balancing.weighting, study.balancing.aggregation, strategy, **parts
    )
    searched = space.arms[0]
    named = {slot: value if getattr(searched, slot) else None for slot, value in vars(study_arm).items()}
    config = Arm(**named).config()
    config |= {
        dimension.name: dimension.default for dimension in space.dimensions if dimension.applies(study_arm)
    }
    weights = study.balancing.weighting_params.get("weights", {})
    if space.has_loss_weights(study_arm):
        config |= {f"{LOSS_WEIGHTS}.{task}": weights[task] / sum(weights.values()) for task in space.tasks}
    return config


def _of_section(config: Config, section: str) -> Config:
    """``section.key`` → value, without the section."""
    start = f"{section}."
    return {name[len(start) :]: value for name, value in config.items() if name.startswith(start)}


def _model(model: dict[str, Any], config: Config) -> dict[str, Any]:
    changes = _of_section(config, "model")
    kind = changes.pop("kind", model["kind"])
    start = dict(model) if kind == model["kind"] else {"kind": kind}
    components = get("models", str(kind)).attribute("components")
    for slot in COMPONENTS:
        if slot not in changes or slot not in components:  # a parameter of that name is one like others
            continue
        name, params = changes.pop(slot), f"{slot}_params"
        given = start.get(params, {}) if name == start.get(slot) else {}
        prefix = f"{slot}.{name}."
        own = {key.removeprefix(prefix): changes.pop(key) for key in list(changes) if key.startswith(prefix)}
        start |= {slot: name, params: given | own}
    return start | {name.removeprefix(f"{kind}."): value for name, value in changes.items()}


def _balancing(balancing: dict[str, Any], config: Config) -> dict[str, Any]:
    changes = _of_section(config, "balancing")
    result = dict(balancing)
    for slot in ("weighting", "aggregation"):
        result[slot] = changes.pop(slot, balancing[slot])
        same = result[slot] == balancing[slot]
        params = dict(balancing[f"{slot}_params"]) if same else {}
        result[f"{slot}_params"] = params | {
            name.partition(".")[2]: changes.pop(name)
            for name in list(changes)
            if name.startswith(f"{result[slot]}.")
        }
    if shares := _of_section(config, LOSS_WEIGHTS):
        weights = {task: float(share) * len(shares) for task, share in shares.items()}  # type: ignore[arg-type]
        result["weighting_params"] = {"weights": weights}
    return result | changes


def merge_federation_config(section: dict[str, Any] | None, config: Config) -> dict[str, Any] | None:
    """The ``federation`` section with a configuration applied; None stays None.

    Parameters belong to their strategy or aggregation; epochs replace steps, and steps replace epochs.
    """
    if section is None:
        return None
    changes = _of_section(config, "federation")
    result = dict(section)
    for slot in ("strategy", "server_aggregation"):
        result[slot] = changes.pop(slot, section[slot])
        result[f"{slot}_params"] = dict(section[f"{slot}_params"]) if result[slot] == section[slot] else {}
    local = {name: changes.pop(f"local.{name}") for name in _of_section(changes, "local")}
    result["local"] = dict(section["local"]) | local
    for length, other in (("epochs", "steps"), ("steps", "epochs")):
        if local.get(length) is not None and other not in local:
            result["local"][other] = None
    strategy_params = {
        name: changes.pop(f"{result['strategy']}.{name}") for name in _of_section(changes, result["strategy"])
    }
    result["strategy_params"] |= strategy_params
    return result | changes
