"""The study file: one YAML that drives every job.

Each section is the parameter model of the component it configures (cohorts and tasks belong to ``datasets``, the model
section to the registry of models, …). This module composes the sections, checks what involves several of them, and
reports every problem in one line: file, line, key, the valid values and the nearest one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)

from equipoise.datasets.omics.params import CLINICAL, OMICS, TableParams, transform_problems
from equipoise.datasets.params import CohortSource, Columns, StrictParams
from equipoise.datasets.tables.tasks import Task
from equipoise.models.slide_encoders.entries import check_tiles
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.evaluation.params import EvaluationParams, ReportParams, within_problems
from equipoise.platform.explain.params import ExplainParams
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.registry import entries, get, nearest
from equipoise.platform.search.params import SearchParams, metric_problem
from equipoise.platform.study.numbers import absurd_numbers
from equipoise.platform.training.params import (
    BalancingParams,
    PretrainParams,
    TrainingParams,
    adds_tasks,
    balancing_problems,
    batch_problems,
    entry_params,
    with_components,
)

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.splits import SplitScheme


def discriminated_union(kind: str, key: str = "kind") -> Any:
    """The type of ``{key: <name>, …parameters}`` for every entry of a registry.

    Parameter models of other packages get the attributes of their kind that they do not declare.
    """
    models = []
    for name, entry in entries(kind).items():
        bases: Any = entry.params if issubclass(entry.params, entry.base) else (entry.params, entry.base)
        tag: Any = (Literal[name], Field(description=entry.summary))
        models.append(create_model(f"{entry.params.__name__}_{name}", __base__=bases, **{key: tag}))
    if len(models) == 1:
        return models[0]
    union: Any = models[0]
    for model in models[1:]:
        union = union | model
    return Annotated[union, Field(discriminator=key)]


ModelSection: Any = discriminated_union("models")

#: Options of built-in split schemes; a section written out by an earlier version has all of them at their defaults.
_SPLIT_OPTIONS = {"folds": 5, "repeats": 1, "test_fraction": 0.2}


def split_section(data: Any) -> Any:
    """A ``splits`` section with its scheme, ``kfold`` if none is named, without default options of other schemes."""
    if not isinstance(data, dict):
        return data
    named = {"scheme": "kfold"} | data
    entry = entries("splits").get(named["scheme"]) if isinstance(named["scheme"], str) else None
    if entry is None:
        return named
    return {
        option: value
        for option, value in named.items()
        if option in entry.params.model_fields or _SPLIT_OPTIONS.get(option) != value
    }


SplitSection: Any = Annotated[discriminated_union("splits", "scheme"), BeforeValidator(split_section)]
#: Problems of a study, one per line, each starting with the section it is about: ``search: …``.
StudyCheck = Callable[["Study"], list[str]]
#: Key of the validation context that holds the checks of components.
CHECKS = "checks"


def _no_boolean(value: Any) -> Any:
    """True is no number, although it equals 1."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is no number")
    return value


class Study(StrictParams):
    """All settings of a run. Paths are relative to the study file."""

    version: Annotated[Literal[1], BeforeValidator(_no_boolean)]
    """Version of this format."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)
    """Name of the study; the run folder is ``runs/<name>`` unless said otherwise."""
    seed: int = Field(42, ge=0)
    """Root of every random number: folds, initial weights, bags, bootstraps."""
    synthetic: bool = False
    """Marks every result as SYNTHETIC; written by ``equipoise synthesize``."""
    cohorts: list[CohortSource] = Field(min_length=1)
    """Where patients, slides and omics come from; at least one has the role ``develop``."""
    columns: Columns = Field(default_factory=Columns)
    """Names of the key columns in the tables; a cohort may override them."""
    patients_per_site: int | None = Field(None, ge=1)
    """Keep a subsample of at most this many patients per site (``--smoke`` sets 4)."""
    tasks: list[Task] = Field(min_length=1)
    """What is predicted."""
    tables: TableParams = TableParams()
    """Which covariates models may read, and how omics become input; fitted on training patients of each fold."""
    features: ExtractionParams = ExtractionParams()  # type: ignore[call-arg]
    """How slides become features."""
    model: ModelSection = Field(default_factory=lambda: {"kind": "joint"}, validate_default=True)
    """Which model is trained (``equipoise ls models``)."""
    balancing: BalancingParams = Field(default_factory=BalancingParams)
    """How losses and gradients of several tasks become one update."""
    training: TrainingParams = Field(default_factory=TrainingParams)
    """Optimisation, bags, early stopping."""
    splits: SplitSection = Field(default_factory=dict, validate_default=True)
    """Cross-validation scheme."""
    search: SearchParams | None = None
    """Search over balancing, loss weights, architecture and optimisation."""
    federation: FederationParams | None = None
    """Federated training across sites that keep their patients, in addition to training on pooled patients."""
    pretrain: PretrainParams | None = None
    """Pre-training of the model on many cohorts, as a start for other studies (``equipoise pretrain``)."""
    explain: ExplainParams | None = None
    """Maps of slides, genes and modalities of chosen predictions (``equipoise explain``)."""
    evaluation: EvaluationParams = Field(default_factory=EvaluationParams)
    """Intervals and thresholds."""
    report: ReportParams = Field(default_factory=ReportParams)
    """The HTML page."""
    resources: RayOptions = Field(default_factory=RayOptions)
    """What Ray may use; the command line overrides it."""

    _file: Path = PrivateAttr(default=Path("study.yaml"))

    @model_validator(mode="after")
    def _check_whole_study(self, info: ValidationInfo) -> "Study":
        problems = [
            *_repeated_names("cohorts", [cohort.name for cohort in self.cohorts]),
            *_repeated_names("tasks", [task.name for task in self.tasks]),
        ]
        if not any(cohort.role == "develop" for cohort in self.cohorts):
            problems.append("cohorts: none has role develop; training needs one")
        mains = [task.name for task in self.tasks if task.main]
        if len(mains) > 1:
            problems.append(f"tasks: {', '.join(mains)} have main: true; only one task can be the main task")
        problems += [
            *_site_problems(self.cohorts),
            *_leaking_covariates(self.tables, self.tasks),
            *_missing_modalities(self),
            *_component_problems(self),
            *_explicit_weight_problems(self),
            *_exact_fit_problems(self),
            *_problems_of_later_steps(self),
            *_per_cohort_problems(self),
            *_text_problems(self),
            *_start_problems(self),
            *_pretrain_problems(self),
            *_explain_problems(self),
            *transform_problems(self.tables, self.cohorts),
        ]
        problems += _search_problems(self)
        checks: Sequence[StudyCheck] = (info.context or {}).get(CHECKS, ())
        problems += [problem for check in checks for problem in check(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def file(self) -> Path:
        """The file the study was read from."""
        return self._file

    @property
    def base(self) -> Path:
        """The folder that paths are relative to."""
        return self._file.parent

    @property
    def reads(self) -> frozenset[str]:
        """Modalities that the model reads: ``wsi`` for slides, the rest are tables."""
        chosen = getattr(self.model, "modalities", None)
        return frozenset(self.model.reads if chosen is None else chosen)

    @property
    def reads_slides(self) -> bool:
        """Whether slides are listed, extracted and read."""
        return "wsi" in self.reads and any(cohort.slides is not None for cohort in self.cohorts)

    @property
    def encodes_rna(self) -> bool:
        """Whether the model reads RNA through an encoder."""
        return self.tables.rna.encoder is not None and "rna" in self.reads

    @property
    def split_scheme(self) -> "SplitScheme":
        """What draws the folds."""
        from equipoise.datasets.cohorts.splits import SplitScheme

        return SplitScheme(get("splits", self.splits.scheme).load(), self.splits, self.base)

    @property
    def main_task(self) -> Task:
        """The task the report leads with: the one that says ``main: true``, else the first."""
        return next((task for task in self.tasks if task.main), self.tasks[0])

    def resolved(self) -> dict[str, Any]:
        """All settings with defaults filled in, as plain data."""
        return self.model_dump(mode="json")


#: Sections or dotted keys that may change between commands of one run, because they change no prediction.
CHANGEABLE_KEYS = (
    "search",
    "federation",  # a finished federation records its own settings
    "pretrain",  # and so does a pre-training
    "explain",  # a map records what it was made from
    "evaluation",
    "report",
    "resources",
    "features.store",
    "features.shard_slides",
    "features.max_fail",
    "features.retry",
)


def fixed_settings(resolved: dict[str, Any]) -> dict[str, Any]:
    """Resolved settings that must not change within a run."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in resolved.items()}
    for free in CHANGEABLE_KEYS:
        section, _, key = free.partition(".")
        if key:
            kept.get(section, {}).pop(key, None)
        else:
            kept.pop(section, None)
    if isinstance(kept.get("splits"), dict):
        kept["splits"] = split_section(kept["splits"])
    return kept


def smoke_overrides(study: Study) -> dict[str, Any]:
    """Overrides of ``--smoke``: every step runs on a subsample of patients, too few to learn from."""
    overrides: dict[str, Any] = {
        "name": f"{study.name}-smoke",
        "patients_per_site": 4,
        "training.epochs": 1,
        "training.min_epochs": 1,
        "evaluation.bootstrap": 50,
    }
    options = type(study.splits).model_fields
    if "folds" in options:
        overrides |= {f"splits.{key}": n for key, n in (("folds", 2), ("repeats", 1)) if key in options}
    if study.explain is not None:
        overrides |= {"explain.slides": 1, "explain.patients": 4}
    if study.search is not None:
        overrides |= {"search.trials": 4 if study.search.population else 2, "search.folds": 2}
    if study.federation is not None:
        overrides |= {"federation.rounds": min(2, study.federation.rounds or 2), "federation.min_n": 1}
        overrides["federation.sites"] = study.federation.sites.model_dump() | {"min_patients": 1}
    return overrides


def _explicit_weight_problems(study: Study) -> list[str]:
    """Problems of weights given by hand, which must name every task and nothing else."""
    weights = study.balancing.weighting_params.get("weights")
    names = [task.name for task in study.tasks]
    explicit = get("weightings", study.balancing.weighting).attribute("takes_explicit_weights")
    if explicit and not _component_problems(study) and adds_tasks(study.model):
        return [
            f"balancing: {study.balancing.weighting} has weights for the tasks of the study, and losses of branches "
            "are tasks, too: write enter: terms in model.modulation_params, or a weighting that learns"
        ]
    if not explicit or weights is None or set(weights) == set(names):
        return []
    return [
        f"balancing.weighting_params.weights: one weight for each of {', '.join(names)} is needed, "
        f"given are {', '.join(weights) or 'none'}"
    ]


def _component_problems(study: Study) -> list[str]:
    """Problems of the entries that a model is made of, and of their parameters."""
    try:
        with_components(get("models", study.model.kind), study.model)
    except ValidationError as error:
        return [
            f"model.{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False)
        ]
    return _slide_encoder_problems(study)


def _slide_encoder_problems(study: Study) -> list[str]:
    """Problems of a slide encoder inside the model with the tiles that it would get."""
    problems = []
    for field, kind in get("models", study.model.kind).attribute("components").items():
        if kind != "slide_encoders" or not study.reads_slides:
            continue
        name, features = getattr(study.model, field), study.features
        if features.slide_encoder is not None:
            problems.append(
                f"model.{field}: {name} reads tiles, of which features.slide_encoder leaves one vector per slide: "
                "leave features.slide_encoder out"
            )
        elif features.imported is None:  # nobody knows here what imported features are
            try:
                check_tiles(name, get(kind, name).params, features.tile_features())
            except ValueError as error:
                problems.append(f"model.{field}: {error}")
    return problems


def _exact_fit_problems(study: Study) -> list[str]:
    """Problems of a model that only a solver fits: nothing can act on its steps."""
    kind = study.model.kind
    if get("models", kind).attribute("fit") != "exact":
        return []
    problems = []
    if study.training.text is not None:
        problems.append(f"training.text: {kind!r} is fitted by a solver, which fits direct heads only")
    if study.training.task_sampling is not None:
        problems.append(f"training.task_sampling: {kind!r} is fitted by a solver, which draws no patients")
    if study.federation is not None:
        problems.append(
            f"federation: {kind!r} is fitted by a solver, which needs the patients in one place; federate clinical, "
            "omics with network: linear, or mean_pool with layers: 0"
        )
    return problems


def _problems_of_later_steps(study: Study) -> list[str]:
    """Problems that training, evaluation or search would find; names of components are checked before."""
    problems = [*within_problems(study.evaluation.within, study.tasks), *absurd_numbers(study.model_dump())]
    if _component_problems(study):
        return problems
    problems += balancing_problems(study.model, study.model.kind, study.balancing, study.tasks)
    return problems + batch_problems(study.training, study.tasks, convex=study.model.convex)


def _per_cohort_problems(study: Study) -> list[str]:
    """Problems of tables that are standardised per cohort, from rows that a federation does not bring together."""
    if study.federation is None or study.tables.rna.standardise == "training":
        return []
    return [
        "tables.rna.standardise: a federation standardises over the patients of all clients: write training"
    ]


def _text_problems(study: Study) -> list[str]:
    """Problems of heads on the text of labels."""
    text = study.training.text
    if text is None:
        return []
    types = {task.name: task.type for task in study.tasks}
    problems = [
        f"training.text.{where}: {name!r} is no task{nearest(name, types)}"
        for where, names in (("tasks", text.tasks or ()), ("labels", text.labels))
        for name in names
        if name not in types
    ]
    chosen = {name: kind for name, kind in types.items() if text.takes(name, kind)}
    problems += [
        f"training.text.tasks: {name!r} is a number, which has no sentence"
        for name, kind in chosen.items()
        if kind == "regression"
    ]
    if not get("models", study.model.kind).attribute("heads_on_text"):
        able = [name for name, entry in entries("models").items() if entry.attribute("heads_on_text")]
        exact = [name for name in able if get("models", name).attribute("fit") == "exact"]
        problems.append(
            f"training.text: {study.model.kind!r} builds heads of its own, which cannot be on text: take "
            f"{', '.join(sorted(set(able) - set(exact)))}, or leave training.text out"
        )
    if not chosen:
        problems.append("training.text: no task has classes; name survival tasks in training.text.tasks")
    if study.federation is not None and "survival" in chosen.values():
        problems.append(
            "training.text.tasks: survival on text needs a Kaplan-Meier curve, which a federation does not bring "
            "together: leave survival tasks out"
        )
    return problems


def _start_problems(study: Study) -> list[str]:
    """Problems of a model that is to start from a pre-trained one, which reads tiles alone."""
    return [] if study.training.start is None else _without_shared_body("training.start", study)


def _without_shared_body(section: str, study: Study) -> list[str]:
    """Problems of a model that cannot be pre-trained: what it learns is of no use for other tasks and tables."""
    kind = study.model.kind
    entry = get("models", kind)
    if tables := sorted(study.reads - {"wsi"}):
        return [f"{section}: {kind!r} reads {', '.join(tables)}, whose columns another study does not have"]
    if entry.attribute("fit") == "exact" or getattr(study.model, "convex", False):
        return [f"{section}: this {kind!r} is linear, so that its tasks share nothing: take another model"]
    return []


def _pretrain_problems(study: Study) -> list[str]:
    """Problems of the pre-training: cohorts that may not be learned from, a model or a training that does not fit."""
    params = study.pretrain
    if params is None:
        return []
    roles = {cohort.name: cohort.role for cohort in study.cohorts}
    problems = _without_shared_body("pretrain", study)
    for name in params.cohorts or ():
        if name not in roles:
            problems.append(f"pretrain.cohorts: {name!r} is no cohort of the study{nearest(name, roles)}")
        elif roles[name] != "develop":
            problems.append(
                f"pretrain.cohorts: {name!r} has role {roles[name]}: it is tested, never trained on"
            )
    problems += _repeated_names("pretrain.cohorts", params.cohorts or [])
    try:
        params.training(study.training)
    except ValidationError as error:
        said = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        problems.append(f"pretrain.sampling: {said}; or write sampling: null")
    return problems


def _explain_problems(study: Study) -> list[str]:
    """Problems of the section that explains predictions."""
    known = [task.name for task in study.tasks]
    named = (study.explain.tasks if study.explain is not None else None) or ()
    return [
        f"explain.tasks: {name!r} is no task{nearest(name, known)}" for name in named if name not in known
    ]


def _search_problems(study: Study) -> list[str]:
    """Problems of the search section: a metric that no task has, or a scheduler that cannot stop its trials."""
    if study.search is None:
        return []
    problem = metric_problem(study.search.metric, study.tasks)
    problems = [f"search: metric {problem}"] if problem else []
    if study.training.workers > 1 and study.search.scheduler != "none":
        problems.append(
            f"search: scheduler {study.search.scheduler} cannot stop trials that have workers of their own "
            "(training.workers): write scheduler: none"
        )
    return problems


def _repeated_names(section: str, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"{section}: the name {name!r} is used {names.count(name)} times" for name in twice]


def _site_problems(cohorts: list[CohortSource]) -> list[str]:
    """Problems of the cohorts' site schemes, which the registry knows."""
    problems = []
    for cohort in cohorts:
        try:
            entry_params("sites", cohort.site.scheme, cohort.site.options)
        except ValueError as error:
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            problems.append(f"cohorts: site of {cohort.name}: {said}")
    return problems


def _leaking_covariates(tables: TableParams, tasks: list[Task]) -> list[str]:
    """Problems of covariates that are also the target of a task."""
    return [
        f"tables: covariate {covariate.column!r} is what task {task.name!r} predicts; a model that reads its own "
        "answer learns nothing (leakage): take it out of clinical"
        for covariate in tables.clinical
        for task in tasks
        if covariate.column in task.columns
    ]


def _missing_modalities(study: Study) -> list[str]:
    """Problems of a model whose modalities no cohort provides."""
    kind, reads = study.model.kind, study.reads
    if "wsi" in reads:
        return []
    there: set[str] = set()
    for cohort in study.cohorts:
        if cohort.role == "develop":
            there.update(cohort.omics)
    if study.tables.clinical:
        there.add(CLINICAL)
    if there & reads:
        return []
    if reads == {CLINICAL}:
        return [
            f"model: {kind!r} reads covariates, and the study names none; write for instance "
            "tables: {clinical: [{column: AGE, type: number}]}"
        ]
    wanted = ", ".join(modality for modality in (CLINICAL, *OMICS) if modality in reads)
    return [f"model: {kind!r} reads {wanted}, and no develop cohort has any of it (omics: {{rna: TABLE}})"]


def json_schema() -> dict[str, Any]:
    """JSON Schema of the study file, for editors."""
    return Study.model_json_schema()
