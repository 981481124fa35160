"""From a configuration to a study and back, and what a configuration is called. Light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from equipoise.platform.search.space import LOSS_WEIGHTS, SLOTS, Arm, Config, Space

if TYPE_CHECKING:
    from equipoise.platform.study import Study


def label(config: Config) -> str:
    """A few words for a trial's name: the methods, else the model, else nothing; and the strategy of a federation."""
    words = str(config.get(SLOTS["kind"], ""))
    if SLOTS["weighting"] in config:
        words = f"{config[SLOTS['weighting']]}+{config[SLOTS['aggregation']]}"
    return "-".join(str(word) for word in (words, config.get(SLOTS["strategy"])) if word)


def configured(settings: dict[str, Any], config: Config) -> Study:
    """The study of these resolved settings with a configuration put in, without its ``search`` section.

    Raises
    ------
    ValueError
        Of pydantic, if the settings do not go together.
    """
    from equipoise.platform.study import Study

    return Study.model_validate(settings_of(settings, config))


def settings_of(settings: dict[str, Any], config: Config) -> dict[str, Any]:
    """Resolved settings with a configuration put in; those given are not changed.

    Hyper-parameters of a method or model other than the study's own start from its defaults.
    """
    return settings | {
        "training": settings["training"] | _of_section(config, "training"),
        "model": _model(settings["model"], config),
        "balancing": _balancing(settings["balancing"], config),
        "federation": federation_of(settings["federation"], config),
        "search": None,
    }


def of_study(study: Study, space: Space) -> Config:
    """The study as written, in the words of the space: the configuration of the first trial."""
    strategy = study.federation.strategy if study.federation is not None else None
    own = Arm(study.model.kind, study.balancing.weighting, study.balancing.aggregation, strategy)
    searched = space.arms[0]
    named = {slot: value if getattr(searched, slot) else None for slot, value in vars(own).items()}
    config = Arm(**named).config()
    config |= {dimension.name: dimension.default for dimension in space.dimensions if dimension.applies(own)}
    weights = study.balancing.weighting_params.get("weights", {})
    if space.tasks and own.weighting == "static":
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
    return start | {name.removeprefix(f"{kind}."): value for name, value in changes.items()}


def _balancing(balancing: dict[str, Any], config: Config) -> dict[str, Any]:
    changes = _of_section(config, "balancing")
    made = dict(balancing)
    for slot in ("weighting", "aggregation"):
        made[slot] = changes.pop(slot, balancing[slot])
        same = made[slot] == balancing[slot]
        params = dict(balancing[f"{slot}_params"]) if same else {}
        made[f"{slot}_params"] = params | {
            name.partition(".")[2]: changes.pop(name)
            for name in list(changes)
            if name.startswith(f"{made[slot]}.")
        }
    if shares := _of_section(config, LOSS_WEIGHTS):
        weights = {task: float(share) * len(shares) for task, share in shares.items()}  # type: ignore[arg-type]
        made["weighting_params"] = {"weights": weights}
    return made | changes


def federation_of(section: dict[str, Any] | None, config: Config) -> dict[str, Any] | None:
    """The ``federation`` section with a configuration put in; None stays None.

    Parameters of a strategy or rule go with it; epochs take the place of steps, and steps of epochs.
    """
    if section is None:
        return None
    changes = _of_section(config, "federation")
    made = dict(section)
    for slot in ("strategy", "rule"):
        made[slot] = changes.pop(slot, section[slot])
        made[f"{slot}_params"] = dict(section[f"{slot}_params"]) if made[slot] == section[slot] else {}
    local = {name: changes.pop(f"local.{name}") for name in _of_section(changes, "local")}
    made["local"] = dict(section["local"]) | local
    for length, other in (("epochs", "steps"), ("steps", "epochs")):
        if local.get(length) is not None and other not in local:
            made["local"][other] = None
    own = {name: changes.pop(f"{made['strategy']}.{name}") for name in _of_section(changes, made["strategy"])}
    made["strategy_params"] |= own
    return made | changes
