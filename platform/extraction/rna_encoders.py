"""The RNA encoder of a study: checked with the study, identified by the driver, built by a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from equipoise.datasets.errors import DataError
from equipoise.models.rna.protocol import Identity, RnaEncoder, check_kind_accepted
from equipoise.platform.errors import ResourceError, StudyError
from equipoise.platform.registry import get

if TYPE_CHECKING:
    from pydantic import BaseModel

    from equipoise.datasets.cohorts.cohort import Cohorts
    from equipoise.datasets.omics.params import RnaEncoderSource
    from equipoise.platform.study.schema import Study

#: Key of a study.
KEY = "tables.rna.encoder"


def encoder_problems(study: Study) -> list[str]:
    """What is wrong with a study's RNA encoder, one line each; empty without one.

    Nothing is opened: a name or a parameter that does not exist, and cohorts that declare a kind of expression that
    the encoder cannot use.
    """
    source = study.tables.rna.encoder
    if source is None:
        return []
    try:
        encoder_params(source, study.base)
    except StudyError as unknown:
        return [f"{KEY}: {unknown}"]
    except ValueError as error:
        return [f"{KEY}: {_first_reason(error)}"]
    accepts = get("rna_encoders", source.name).attribute("accepts")
    problems = []
    for cohort in study.cohorts:
        kind = cohort.omics["rna"].kind if "rna" in cohort.omics else None
        if kind is not None:
            try:
                check_kind_accepted(source.name, accepts, kind)
            except ValueError as error:
                problems.append(f"{KEY}: cohort {cohort.name}: {': '.join(str(error).splitlines())}")
    return problems


def _first_reason(error: ValueError) -> str:
    errors: Callable[[], list[dict[str, Any]]] | None = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    first = errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    return f"{path}: {first['msg']}" if path else str(first["msg"])


def encoder_params(source: RnaEncoderSource, base: Path) -> BaseModel:
    """The parameters of the encoder, with its paths made absolute.

    Raises
    ------
    StudyError
        If no entry has this name.
    ValueError
        If a parameter is wrong.
    """
    entry = get("rna_encoders", source.name)
    given = dict(source.params)
    for name in entry.attribute("paths"):
        if isinstance(given.get(name), str):
            given[name] = str((base / Path(given[name]).expanduser()).resolve())
    return entry.params.model_validate(given)


def load_rna_encoder(source: RnaEncoderSource, base: Path) -> RnaEncoder:
    """The encoder that a study names.

    Raises
    ------
    ResourceError
        If its files are missing or belong to another encoder.
    """
    with _as_resource_error(source.name):
        return get("rna_encoders", source.name).load()(encoder_params(source, base))


def identify_rna_encoder(source: RnaEncoderSource, base: Path) -> Identity:
    """Its identity; the encoder is built only if its class has no ``identify``.

    Raises
    ------
    ResourceError
        As :func:`load_rna_encoder`.
    """
    encoder_class = get("rna_encoders", source.name).load()
    if not hasattr(encoder_class, "identify"):
        encoder = load_rna_encoder(source, base)
        return Identity(encoder.dim, encoder.fingerprint)
    with _as_resource_error(source.name):
        return cast(Identity, encoder_class.identify(encoder_params(source, base)))


def require_usable_expression(source: RnaEncoderSource, cohorts: Cohorts) -> None:
    """Refuse RNA that the encoder cannot use, declared or as it looks.

    Raises
    ------
    DataError
        Naming the cohort and what to do.
    """
    accepts = get("rna_encoders", source.name).attribute("accepts")
    for name, expression in cohorts.expression.items():
        try:
            check_kind_accepted(source.name, accepts, expression.kind)
        except ValueError as error:
            what, _, fix = str(error).partition("\n")
            said = "declares" if expression.declared else "looks like"
            raise DataError(
                f"{what}; the RNA of cohort {name} {said} {expression.text}", where=KEY, fix=fix
            ) from error


@contextmanager
def _as_resource_error(name: str) -> Iterator[None]:
    """Raise problems with files as :class:`ResourceError`, with how to solve them."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        what, _, fix = str(error).partition("\n")
        raise ResourceError(what, where=f"RNA encoder {name}", fix=fix or None) from error
