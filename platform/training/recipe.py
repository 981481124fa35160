"""The recipe of a study: what decides the weights that come out of training on given patients. Light."""

from typing import TYPE_CHECKING

from equipoise.platform.training.params import Recipe

if TYPE_CHECKING:
    from equipoise.platform.study import Study


def recipe_of(study: "Study") -> Recipe:
    """Model, balancing, training parameters, tables and seed of a study."""
    params = study.model.model_dump()
    return Recipe(
        model=params.pop("kind"),
        model_params=params,
        balancing=study.balancing,
        training=study.training,
        tables=study.tables,
        seed=study.seed,
    )
