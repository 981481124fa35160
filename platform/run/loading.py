"""Reads a study for a job and asks every component whether it can work with it.

The schema checks what its sections and their combination say by themselves. What only a component knows, for example
whether a search space fits the study, is asked here, so that the schema needs no component: a user sees all problems
at once, each with its line.
"""

from pathlib import Path
from typing import Any

from equipoise.datasets.omics.resolution import resolve_tables
from equipoise.platform.study.reading import read_study, study_of_text
from equipoise.platform.study.schema import Study


def load_study(path: str | Path, overrides: dict[str, Any] | None = None) -> Study:
    """Read a study, apply the overrides, and check it with all components.

    Parameters
    ----------
    path
        The YAML file.
    overrides
        Dotted key → value, as given by ``--set``; list items by number (``cohorts.0.role``).

    Raises
    ------
    StudyError
        With every problem at once, each with its line.
    """
    return read_study(path, overrides, CHECKS)


def check_draft(text: str, file: Path) -> None:
    """Do what ``validate`` does with a study that is not written yet; nothing is written.

    Raises
    ------
    EquipoiseError
        What ``validate`` would say.
    """
    from equipoise.datasets.cohorts.splits import make_folds
    from equipoise.platform.run.context import read_cohorts

    study = study_of_text(text, file, None, CHECKS)
    cohorts = read_cohorts(study)
    cohorts.require_learnable()
    make_folds(cohorts.patients, study.split_scheme, study.tasks, study.seed, cohorts.slides)


def rna_encoder_problems(study: Study) -> list[str]:
    """Why the study's RNA encoder cannot be used as written; empty without one."""
    if study.tables.rna.encoder is None:
        return []
    from equipoise.platform.extraction.rna_encoders import encoder_problems

    return encoder_problems(study)


def search_problems(study: Study) -> list[str]:
    """Why the search section of a study makes no space; empty without the section."""
    if study.search is None:
        return []
    from equipoise.platform.search.space_builder import space_problems

    return space_problems(study, study.search)


def federation_problems(study: Study) -> list[str]:
    """Why clients of the federation cannot work as the study says; empty without the section."""
    if study.federation is None:
        return []
    from equipoise.platform.federation.privacy.compatibility import (
        PRESENCE_REFUSAL,
        balancing_refusals,
        statistics_refusals,
    )
    from equipoise.platform.federation.privacy.params import NoisedStatistics

    privacy = study.federation.privacy
    reasons = balancing_refusals(privacy, study.balancing.weighting, study.balancing.aggregation)[:1]
    if isinstance(privacy.statistics, NoisedStatistics):
        tables = resolve_tables(study.tables, study.cohorts, study.base)
        reasons += statistics_refusals(privacy.statistics, study.tasks, tables)
        reasons += [PRESENCE_REFUSAL] if study.model.needs_presence else []
    if study.training.risk_sets == "memory":
        reasons.append(
            "sites keep no scores between rounds, and training.risk_sets: memory compares with them: write batch, and "
            "federation.local.batch: full for the likelihood of all patients of a site"
        )
    if study.training.task_sampling is not None:
        reasons.append(
            "every site trains on its own patients, and training.task_sampling draws from all of them: leave it out"
        )
    return [f"federation: {reason}" for reason in reasons]


#: What components say of a study.
CHECKS = (rna_encoder_problems, search_problems, federation_problems)
