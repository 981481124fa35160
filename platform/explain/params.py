"""The ``explain:`` section of a study."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from equipoise.datasets.params import StrictParams
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import get


class MethodChoice(StrictParams):
    """An attribution method; its name alone is enough."""

    name: str
    """Name in ``equipoise ls attributions``."""
    params: dict[str, Any] = Field(default={})
    """Its parameters."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _known(self) -> "MethodChoice":
        try:
            entry = get("attributions", self.name)
        except StudyError as unknown:
            raise ValueError(str(unknown)) from unknown  # pydantic collects it with the others
        entry.params.model_validate(self.params)
        return self


class ExplainParams(StrictParams):
    """``explain:`` of a study: which predictions are explained, and how."""

    methods: tuple[MethodChoice, ...] = Field(
        default=(MethodChoice(name="gradient_input"),),
        min_length=1,
        description="attribution methods; top and bottom tiles are those of the first",
    )
    tasks: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="tasks that are explained; all if not given"
    )
    classes: Literal["predicted", "all"] = Field(
        default="predicted",
        description="of a multiclass task: the class that was predicted for the patient, or every class",
    )
    slides: int | tuple[str, ...] = Field(
        default=4,
        description="how many patients of each cohort are chosen (highest, lowest, most wrong in turn), or names of "
        "slides and patients",
    )
    top_k: int = Field(default=8, ge=1, le=100, description="tiles at either end that are listed and cut out")
    crops: bool = Field(default=True, description="cut these tiles out of the slide, where it is there")
    pictures: bool = Field(
        default=True, description="draw maps: PNG, GeoJSON for QuPath, a viewer of the slide"
    )
    checks: bool = Field(
        default=True, description="check every map: deletion, randomisation, agreement of folds"
    )
    patients: int = Field(
        default=40,
        ge=0,
        description="patients of each cohort whose tables are explained (genes, modalities); 0 for none",
    )
    steps: int = Field(default=16, ge=1, le=512, description="points along the path for tables")

    @field_validator("slides", mode="before")
    @classmethod
    def _one_name(cls, slides: Any) -> Any:
        return (slides,) if isinstance(slides, str) else slides

    @field_validator("slides")
    @classmethod
    def _some(cls, slides: int | tuple[str, ...]) -> int | tuple[str, ...]:
        if isinstance(slides, int) and slides < 0:
            raise ValueError("slides: a number of patients is not below 0")
        return slides

    @field_validator("methods")
    @classmethod
    def _once(cls, methods: tuple[MethodChoice, ...]) -> tuple[MethodChoice, ...]:
        names = [method.name for method in methods]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"methods: {', '.join(twice)} comes twice, and a map is named after its method")
        return methods
