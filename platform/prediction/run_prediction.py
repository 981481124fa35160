"""The job ``predict``: what the command line says, the outputs, and how it ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.platform.errors import StudyError, ToleranceError
from equipoise.platform.prediction.assess import trust_of, write_pages
from equipoise.platform.prediction.exported_model import read_exported
from equipoise.platform.prediction.local_files import parse_files
from equipoise.platform.prediction.maps import draw_maps, map_problem
from equipoise.platform.prediction.new_patients import Sources, read_new_patients, table_settings
from equipoise.platform.prediction.predict import predict, summary, write

log = logging.getLogger("equipoise")


@dataclass(frozen=True)
class Request:
    """What is asked for; fields are the options of ``equipoise predict``."""

    model: Path
    out: Path
    slides: str | None = None
    slides_dir: str | None = None
    features: str | None = None
    tables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    sha256: str | None = None
    cohort: str = "new"
    encoder: str | None = None
    mpp: float | None = None
    tile_px: int | None = None
    accept_imported: bool = False
    workers: int = 0
    pages: bool = True
    maps: tuple[str, ...] = ()
    coverage: float | None = None


@dataclass(frozen=True)
class Done:
    """What came out: a text for a person, and the fields of the result line."""

    text: str
    fields: dict[str, Any]


def run_prediction(request: Request) -> Done:
    """Check the model, read the patients, predict them and write everything.

    Raises
    ------
    ToleranceError
        After everything is written, if more slides failed than the model's study tolerates.
    EquipoiseError
        For a model, features or tables that cannot be used.
    """
    if request.out.resolve().is_relative_to(request.model.resolve()):
        raise StudyError(
            "the predictions would be written into the model, which could not be read afterwards",
            where="-o",
            fix="name a folder outside --model",
        )
    model = read_exported(request.model, sha256=request.sha256).with_files(parse_files(list(request.files)))
    trust = trust_of(model, request.coverage)
    sources = Sources(
        slides=None if request.slides is None else Path(request.slides).expanduser(),
        slides_dir=request.slides_dir,
        features=None if request.features is None else Path(request.features).expanduser(),
        encoder=request.encoder,
        mpp=request.mpp,
        tile_px=request.tile_px,
        accept_imported=request.accept_imported,
        tables=parse_tables(request.tables),
        cohort=request.cohort,
    )
    if request.maps and (problem := map_problem(model, request.maps)):
        raise problem
    out = request.out
    new = read_new_patients(model, sources, out, workers=request.workers, session=_session(request.workers))
    result = predict(model, new, trust)
    write(result, model, new, out)
    maps = draw_maps(model, new, result.table, request.maps, out) if request.maps else {}
    if request.pages:
        write_pages(result.table, model, trust, result.assessment, new, out, maps)
    fields: dict[str, Any] = {"out": out.resolve(), "patients": int(result.patients["predicted"].sum())}
    fields |= {"not_predicted": int((~result.patients["predicted"]).sum()), "sha256": model.sealed.sha256}
    fields |= {"synthetic": True} if model.config.synthetic else {}
    if result.assessment is not None and len(result.assessment.batch):
        fields["drift"] = bool(result.assessment.batch["flagged"].any())
    done = Done(summary(result, model), fields)
    if new.failed > model.config.max_fail:
        print(done.text)
        raise ToleranceError(
            f"{new.failed:.1%} of the slides failed, more than the {model.config.max_fail:.1%} of the model's study",
            where=str(out / "slides.csv"),
            fix="look at the reasons there; the other patients are predicted",
        )
    return done


def parse_tables(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``("rna=FILE", …)``; a ``.yaml`` file holds the settings of a table as in a study.

    Raises
    ------
    StudyError
        If one is not of this form, or a table is named twice.
    """
    tables: dict[str, Any] = {}
    for pair in pairs:
        name, equals, place = pair.partition("=")
        if not (name and equals and place):
            raise StudyError(
                f"--tables {pair!r} is not of the form NAME=TABLE",
                where="command line",
                fix="for example --tables rna=expression.csv",
            )
        if name in tables:
            raise StudyError(f"--tables names {name} twice", where="command line", fix="name one table")
        tables[name] = table_settings(place)
    return tables


def _session(workers: int) -> Any:
    """Opens a local Ray for as many workers."""

    @contextmanager
    def session() -> Iterator[None]:
        from equipoise.platform.cluster.params import RayOptions
        from equipoise.platform.cluster.session import ray_session

        with ray_session(RayOptions(cpus=workers)):
            yield

    return session
