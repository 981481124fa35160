"""Parameters of ``evaluation:`` and ``report:`` in a study. Light: pydantic only."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from equipoise.datasets.params import StrictParams

if TYPE_CHECKING:
    from equipoise.datasets.tables.tasks import Task


class ThresholdParams(StrictParams):
    """How the operating point of a binary task is chosen.

    It may be chosen on validation data only; ``chosen_on`` exists so that a study states this.
    """

    metric: Literal["youden", "sensitivity", "specificity", "fixed"] = Field(
        default="youden",
        description="youden: highest sensitivity + specificity; sensitivity: highest threshold that reaches `value`; "
        "specificity: lowest threshold that reaches `value`; fixed: the threshold is `value`",
    )
    value: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="sensitivity or specificity to reach, or the threshold itself (metric: fixed)",
    )
    chosen_on: Literal["val"] = Field(default="val", description="validation data; nothing else is allowed")

    @model_validator(mode="after")
    def _value_belongs_to_metric(self) -> "ThresholdParams":
        if self.metric == "youden" and self.value is not None:
            raise ValueError("metric 'youden' takes no value; write metric: sensitivity to fix a sensitivity")
        if self.metric == "fixed" and (self.value is None or self.value == 1):
            raise ValueError(
                "metric 'fixed' needs the threshold, a probability below 1: for example value: 0.5"
            )
        if self.metric != "youden" and self.value is None:
            raise ValueError(f"metric {self.metric!r} needs the value to reach, for example value: 0.95")
        return self

    @property
    def label(self) -> str:
        """``Youden``, ``sensitivity >= 0.95``, ``threshold 0.5``."""
        if self.metric == "youden":
            return "Youden"
        return f"threshold {self.value:g}" if self.metric == "fixed" else f"{self.metric} >= {self.value:g}"


class BaselineParams(StrictParams):
    """Which linear models stand beside the study's model; ``baselines: false`` switches them off."""

    enabled: bool = Field(default=True, description="fit and show baselines")
    l1_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="elastic nets of tables and of the mean tile: 0 is ridge, 1 the lasso",
    )

    geneicl: Literal["auto"] | bool = Field(
        default="auto",
        description="GeneICL on RNA (pip install -e '.[geneicl]'); auto: where the package is installed",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_flag(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value


class TransferParams(StrictParams):
    """What a model's embeddings are worth in external cohorts; ``transfer: true`` for the defaults."""

    folds: int = Field(
        default=5,
        ge=2,
        description="folds in an external cohort, whose labels a probe is fitted to and scored on",
    )


class EvaluationParams(StrictParams):
    """``evaluation:`` of a study."""

    bootstrap: int = Field(default=2000, ge=50, le=100_000, description="bootstrap draws of silhouettes")
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0, description="level of every interval")
    threshold: ThresholdParams = ThresholdParams()
    operating_points: list[ThresholdParams] = Field(
        default=[
            ThresholdParams(metric="sensitivity", value=0.95),
            ThresholdParams(metric="specificity", value=0.95),
        ],
        description="further operating points of binary tasks, listed beside `threshold`, which headlines use",
    )
    horizon: float | None = Field(
        default=None,
        gt=0,
        description="days after which predicted survival is compared with observed survival; default: the longest of "
        "1, 2, 3, 5 and 10 years that the follow-up of test and validation patients supports",
    )
    subgroups: list[str] = Field(
        default=[],
        description="columns of the clinical table, or comparisons such as `AGE >= 70`, whose groups of patients get "
        "metrics of their own; a group needs `min_site` labelled patients",
    )
    within: list[str] = Field(
        default=["cohort"],
        description="what patients are compared within before the values are averaged: cohort, site, or the name of a "
        "binary or multiclass task, whose classes are then strata of all other tasks; [] pools everybody",
    )
    min_site: int = Field(
        default=10, ge=1, description="minimum number of labelled patients for a site to get its own metric"
    )
    min_site_events: int = Field(
        default=5,
        ge=1,
        description="minimum number of events for a site to get a C-index of its own, which counts pairs with an event",
    )
    baselines: BaselineParams = BaselineParams()
    seen_patients: Literal["refuse", "mark"] = Field(
        default="refuse",
        description="a patient whom a pre-trained part of the model has seen is tested: refuse stops, mark goes on and "
        "says so in the report, whose audit then fails",
    )
    transfer: TransferParams | None = Field(
        default=None,
        description="fit probes on the embeddings of external cohorts, and set them beside the model as it is and "
        "trivial baselines (`transfer: true`)",
    )

    @field_validator("subgroups")
    @classmethod
    def _readable_subgroups(cls, subgroups: list[str]) -> list[str]:
        for text in subgroups:
            split_comparison(text)
        if repeated := sorted({text for text in subgroups if subgroups.count(text) > 1}):
            raise ValueError(f"named twice: {', '.join(repeated)}")
        return subgroups

    @field_validator("transfer", mode="before")
    @classmethod
    def _from_flag(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value


class ReportParams(StrictParams):
    """``report:`` of a study."""

    title: str | None = Field(default=None, max_length=200, description="heading; default: the study's name")
    intended_use: str | None = Field(
        default=None,
        max_length=2000,
        description="who should use the model for what; printed below the verdict",
    )
    sections: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="parameters of report sections, by section name"
    )

    @field_validator("sections")
    @classmethod
    def _known_sections(cls, sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        from equipoise.platform.errors import StudyError
        from equipoise.platform.registry import get

        for name, values in sections.items():
            try:
                entry = get("sections", name)
            except StudyError as unknown:
                raise ValueError(str(unknown)) from unknown  # pydantic collects it with the others
            entry.params.model_validate(values)
        return sections


class Comparison(NamedTuple):
    """A column of the clinical table, and how its values are compared with what; a column alone has no sign."""

    column: str
    sign: str = ""
    value: str = ""


#: The longest first, so that ``>=`` is not read as ``>``.
_SIGNS = (">=", "<=", "==", "!=", ">", "<")


def split_comparison(text: str) -> Comparison:
    """``AGE >= 70`` into its parts, for subgroups.

    Raises
    ------
    ValueError
        If a side is empty, or what sizes are compared with is no number.

    >>> split_comparison("AGE >= 70")
    Comparison(column='AGE', sign='>=', value='70')
    """
    sign = next((sign for sign in _SIGNS if sign in text), "")
    column, _, value = text.partition(sign) if sign else (text, "", "")
    column, value = column.strip(), value.strip().strip("'\"")
    if not column or (sign and not value):
        raise ValueError(f"{text!r} is neither a column nor a comparison such as 'AGE >= 70'")
    if sign in (">=", "<=", ">", "<"):
        try:
            float(value)
        except ValueError:
            raise ValueError(f"{text!r} compares a size with {value!r}, which is no number") from None
    return Comparison(column, sign, value)


def too_few_events(params: EvaluationParams, kind: str, events: int | None, patients: int) -> str:
    """Why a site gets no C-index although it has patients enough; empty for other metrics and where it does.

    Parameters
    ----------
    kind
        Type of the task.
    events, patients
        Labelled patients of the site, and those with an event.
    """
    if kind != "survival" or events is None or events >= params.min_site_events:
        return ""
    return (
        f"{events} events among {patients} labelled patients; sites below {params.min_site_events} events get no "
        "C-index"
    )


def within_problems(within: Sequence[str], tasks: "Sequence[Task]") -> list[str]:
    """Problems of ``evaluation.within``, which names cohort, site or tasks with classes, one line each."""
    from equipoise.platform.registry import nearest

    known = ["cohort", "site", *(task.name for task in tasks if task.type in ("binary", "multiclass"))]
    return [
        f"evaluation.within: {name!r} is not one of {', '.join(known)}{nearest(name, known)}"
        for name in within
        if name not in known
    ]
