"""New patients as cases: slides are tiled and encoded as those of training, features and tables are checked against it.

What stands in the way of a prediction is said of the patient that it concerns, and of the table or feature store where
it concerns everybody. Extraction, import and slide encoders are those of every study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.cohorts.cases import CaseReader
from equipoise.datasets.cohorts.unlabelled import (
    UnlabelledTables,
    load_unlabelled,
    slides_in,
    slides_named,
    slides_of_table,
)
from equipoise.datasets.omics.params import CLINICAL, RnaParams
from equipoise.datasets.params import OmicsSource, TableSource
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.prediction.exported_model import ExportedModel, FeatureSpec
from equipoise.platform.prediction.features import feature_spec, require_same_store, require_same_tiles

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cohort import Cohorts
    from equipoise.datasets.cohorts.cohort_tables import SlideList
    from equipoise.datasets.store.feature_store import FeatureStore
    from equipoise.datasets.store.state_store import StateStore
    from equipoise.models.slide_encoders.hidden_states import HiddenStates
    from equipoise.platform.extraction.params import ExtractionParams

Session = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Sources:
    """Where the data of new patients are.

    Attributes
    ----------
    slides
        A folder of slides, a table with patient and file, or a ``.yaml`` file with the settings of one.
    slides_dir
        Folder that the files of the table are relative to.
    features
        A feature store, or a folder of ``.h5`` files of STAMP or TRIDENT, in place of an extraction.
    encoder, mpp, tile_px
        Of ``.h5`` files that do not state them.
    accept_imported
        Features of the same encoder are taken although nobody can compare its weights.
    tables
        Modality (``rna``, ``cnv``, ``mutation``, ``clinical``) → table, or its settings as in a study.
    cohort
        Name of the cohort; one of training has the statistics of its own tables.
    """

    slides: Path | None = None
    slides_dir: str | None = None
    features: Path | None = None
    encoder: str | None = None
    mpp: float | None = None
    tile_px: int | None = None
    accept_imported: bool = False
    tables: Mapping[str, Any] = field(default_factory=dict)
    cohort: str = "new"


@dataclass(frozen=True)
class NewPatients:
    """Patients who can be predicted, and who cannot.

    Attributes
    ----------
    cohorts
        Patients and slides that are left, exclusions with their reasons.
    reader
        Their cases.
    slides
        One row per slide: ``slide patient path status error n mpp``, more where the extraction knows it.
    remarks
        What concerns every patient: weights that nobody compared, columns that are missing.
    failed
        Share of the slides that failed.
    qc
        Folder with pictures of the slides, None without an extraction.
    """

    cohorts: Cohorts
    reader: CaseReader
    slides: pd.DataFrame
    remarks: tuple[str, ...]
    failed: float
    qc: Path | None = None


def read_new_patients(
    model: ExportedModel, sources: Sources, out: Path, *, workers: int = 0, session: Session = nullcontext
) -> NewPatients:
    """Read, and where need be extract, what the model reads of new patients.

    Parameters
    ----------
    model
        With the places of its local files.
    sources
        Where the data are.
    out
        Folder for features that are extracted or imported, and for pictures of slides.
    workers
        Encoder actors on Ray; 0: everything in this process.
    session
        Opens Ray.

    Raises
    ------
    DataError
        If features or tables are not those that the model was trained on, or nobody can be predicted.
    StudyError
        If the model reads none of what is given.
    """
    import pandas as pd

    _require_sources(model, sources)
    listed = _listed_slides(sources)
    cohorts = load_unlabelled(
        sources.cohort,
        listed,
        _tables(model, sources),
        Path.cwd(),
        reads=frozenset(model.config.reads),
        covariates=model.config.tables.clinical,
    )
    _check_expression(model, cohorts)
    remarks: list[str] = []
    cohorts = _with_rna(model, cohorts, out, workers, session)
    store: FeatureStore | None = None
    states: StateStore | None = None
    index, failed, qc = pd.DataFrame(), 0.0, None
    if listed is not None and len(cohorts.slides):
        features = feature_spec(model, "--slides")
        store, index, more = _features(features, cohorts, sources, out, workers, session)
        remarks += more
        failed = float((~index["status"].isin(["ok"])).mean())
        qc = out / "qc" if sources.features is None else None
        cohorts = cohorts.with_slide_status(index)
        states = _states(model, cohorts, store, features, out, workers, session)
    else:
        cohorts = cohorts.without_slides()
    if cohorts.patients.empty:
        reasons = "; ".join(
            f"{r.patient or r.slide}: {r.reason}" for r in cohorts.exclusions.head(3).itertuples()
        )
        raise DataError(
            f"no patient can be predicted: {reasons or 'there is none'}",
            where=str(sources.slides or sources.features or sources.cohort),
            fix="slides.csv in the output folder says what is wrong with every slide" if len(index) else None,
        )
    return NewPatients(
        cohorts, CaseReader(cohorts, store, states=states), _slide_rows(index), tuple(remarks), failed, qc
    )


def _require_sources(model: ExportedModel, sources: Sources) -> None:
    reads = model.config.reads
    if unknown := sorted(set(sources.tables) - set(model.config.tables.modalities)):
        raise StudyError(
            f"the model reads no table {unknown[0]!r}: it reads {', '.join(reads)}",
            where="--tables",
            fix="leave it out",
        )
    if sources.slides is None and sources.features is None and not sources.tables:
        raise StudyError(
            f"there is nothing to predict from; the model reads {', '.join(reads)}",
            where="command line",
            fix="name slides, features or tables: --slides, --features, --tables NAME=FILE",
        )
    for place, what in ((sources.slides, "--slides"), (sources.features, "--features")):
        if place is not None:
            feature_spec(model, what)
            if not place.exists():
                raise DataError(f"there is no file or folder {place}", where=what, fix="correct the path")
    if sources.features is None and sources.slides is not None and feature_spec(model, "--slides").imported:
        tiles = feature_spec(model, "--slides").tiles
        raise StudyError(
            f"the model was trained on features that were imported ({tiles.encoder}, {tiles.mpp:g} um/px, tiles of "
            f"{tiles.tile_px} px), so that nothing here can extract them from slides",
            where="--slides",
            fix="extract them with the same tool, and name their folder: --features DIR",
        )


def _listed_slides(sources: Sources) -> SlideList | None:
    """Slides and their patients: of the table or folder, else those of the feature store."""
    if sources.slides is not None:
        if sources.slides.is_dir():
            return slides_in(sources.slides)
        settings = table_settings(str(sources.slides))
        table = {"path": settings} if isinstance(settings, str) else settings
        return slides_of_table(TableSource.model_validate(table), sources.slides_dir, Path.cwd())
    if sources.features is None:
        return None
    from equipoise.datasets.store.feature_store import FeatureStore
    from equipoise.datasets.store.spec import SPEC_FILE
    from equipoise.platform.extraction.h5_exchange import h5_files_below

    folder = sources.features
    stores = sorted(file.parent for file in folder.rglob(SPEC_FILE))
    if len(stores) == 1:
        rows = [row["slide"] for row in FeatureStore.open(stores[0]).rows() if row["status"] == "ok"]
        return slides_named(list(dict.fromkeys(rows)))
    files = [file.stem for file in h5_files_below(folder)]
    if stores or not files:
        found = f"{len(stores)} feature stores" if stores else "neither a feature store nor .h5 files"
        raise DataError(
            f"{found} here or below", where=str(sources.features), fix="name the folder of one store"
        )
    return slides_named(files)


def table_settings(place: str) -> str | dict[str, Any]:
    """A table, or its settings as in a study where a ``.yaml`` file is named.

    Raises
    ------
    StudyError
        If the file holds no settings.
    """
    from equipoise.platform.yaml_files import parse, read_text

    if Path(place).suffix not in (".yaml", ".yml"):
        return place
    settings, _ = parse(read_text(Path(place)), place)
    if not isinstance(settings, dict):
        raise StudyError(
            "the settings of a table are not a mapping",
            where=place,
            fix="write the settings that the table has in a study: path: …, rename: …",
        )
    return settings


def _tables(model: ExportedModel, sources: Sources) -> UnlabelledTables:
    """Tables as sources; RNA is declared to be what that of training was, so that other values are refused."""
    omics, clinical = {}, None
    trained = model.config.tables.expression
    for name, given in sources.tables.items():
        settings = {"path": given} if isinstance(given, str) else dict(given)
        if name == CLINICAL:
            clinical = TableSource.model_validate(settings)
            continue
        if name == "rna" and trained is not None:
            settings.setdefault("kind", trained["kind"])
            if settings["kind"] == "log" and trained["base"] is not None:
                base = trained["base"]
                settings.setdefault("log_base", int(base) if float(base).is_integer() else "e")
                settings.setdefault("pseudocount", trained["pseudocount"])
        omics[name] = OmicsSource.model_validate(settings)
    return UnlabelledTables(omics, clinical)


def _check_expression(model: ExportedModel, cohorts: Cohorts) -> None:
    """Refuse RNA of another kind than that of training."""
    from equipoise.datasets.omics.expression import Expression

    trained = model.config.tables.expression
    for name, found in cohorts.expression.items():
        if trained is not None and found.differs_from(Expression(**trained)):
            raise DataError(
                f"the model was trained on RNA as {Expression(**trained).text}, this is {found.text}",
                where=f"rna of {name}",
                fix="bring the table to the kind of training",
            )


def _with_rna(model: ExportedModel, cohorts: Cohorts, out: Path, workers: int, session: Session) -> Cohorts:
    """RNA through the encoder that the model was trained with."""
    tables = model.config.tables
    if tables.rna_encoder is None or "rna" not in cohorts.omics:
        return cohorts
    from equipoise.platform.extraction.rna_cohorts import encode_cohorts, with_rna_vectors
    from equipoise.platform.extraction.rna_encoders import identify_rna_encoder

    base = Path.cwd()
    found = identify_rna_encoder(tables.rna_encoder, base).fingerprint
    if found != tables.rna_encoder_fingerprint:
        raise DataError(
            f"this is another RNA encoder {tables.rna_encoder.name} than that of training: "
            f"{found[:12]}, not {str(tables.rna_encoder_fingerprint)[:12]}",
            where="--file",
            fix="take the files that the model was trained with",
        )
    params = RnaParams(encoder=tables.rna_encoder, adapter=tables.rna_adapter)
    stores = out / "features"
    encode_cohorts(cohorts, params, base, stores, workers=workers, session=session)
    return with_rna_vectors(cohorts, params, base, stores)


def _features(
    features: FeatureSpec, cohorts: Cohorts, sources: Sources, out: Path, workers: int, session: Session
) -> tuple[FeatureStore, pd.DataFrame, list[str]]:
    """The store that the model reads, its index of these slides, and what is to be said of it."""
    from equipoise.platform.extraction.encoders import identify_encoder, store_spec
    from equipoise.platform.extraction.sources import obtain_features, open_features

    params = _extraction(features, sources, out)
    where = str(sources.features or sources.slides)
    remarks: list[str] = []
    if params.imported is None:  # before hours of work
        remarks = require_same_tiles(
            features.tiles, store_spec(params, identify_encoder(params)), where=where
        )
    root, base = out / "features", Path.cwd()
    tiles_only = params.model_copy(update={"slide_encoder": None, "slide_encoder_params": {}})
    summary = obtain_features(
        cohorts.slides, tiles_only, root, base, workers=workers, session=session, qc_dir=out / "qc"
    )
    tiles = open_features(tiles_only, root, base, cohorts.slides)
    if params.imported is not None:
        remarks = require_same_tiles(
            features.tiles, tiles.spec, where=where, accept_imported=sources.accept_imported
        )
    if params.slide_encoder is None:
        return tiles, summary.index, remarks
    summary = obtain_features(cohorts.slides, params, root, base, workers=workers, session=session)
    store = open_features(params, root, base, cohorts.slides)
    require_same_store(features, store, where="features.slide_encoder")
    return store, summary.index, remarks


def _extraction(features: FeatureSpec, sources: Sources, out: Path) -> ExtractionParams:
    """The section ``features`` of a study that would do this."""
    from equipoise.platform.extraction.params import ExtractionParams

    settings = dict(features.extraction) | {"store": str(out / "features"), "max_fail": 1.0}
    if sources.features is None:
        return ExtractionParams.model_validate(settings)
    imported = {
        "path": [str(sources.features.resolve())],
        "encoder": sources.encoder,
        "mpp": sources.mpp,
        "tile_px": sources.tile_px,
    }
    kept = ("slide_encoder", "slide_encoder_params", "max_bad_tiles", "max_fail", "store")
    return ExtractionParams.model_validate(
        {key: settings[key] for key in kept if key in settings} | {"imported": imported}
    )


def _states(
    model: ExportedModel,
    cohorts: Cohorts,
    store: FeatureStore,
    features: FeatureSpec,
    out: Path,
    workers: int,
    session: Session,
) -> StateStore | None:
    """Hidden states of a frozen slide encoder, for a model that was trained on stored ones."""
    from equipoise.platform.extraction.hidden_states import open_states, store_states
    from equipoise.platform.extraction.params import ExtractionParams
    from equipoise.platform.training.params import entry_params

    settings = entry_params("models", model.config.kind, model.config.params)
    kept: HiddenStates | None = getattr(settings, "hidden_states", None)
    if kept is None or cohorts.slides.empty:
        return None
    params = (
        ExtractionParams.model_validate(features.extraction)
        if not features.imported
        else ExtractionParams.model_validate({})
    )
    root = out / "features"
    store_states(cohorts.slides, store, kept, params, root, workers=workers, session=session)
    return open_states(cohorts.slides, store, kept, params, root)


def _slide_rows(index: pd.DataFrame) -> pd.DataFrame:
    """One row per slide, also for those that failed, in the order of the input."""
    import pandas as pd

    if index.empty:
        return pd.DataFrame(columns=["slide", "patient", "path", "status", "error", "n", "mpp"])
    known = index.drop(
        columns=[name for name in ("key", "shard", "batch", "attempts", "fingerprint") if name in index]
    )
    first = [name for name in ("slide", "patient", "path", "status", "error", "n", "mpp") if name in known]
    return known[[*first, *(name for name in known if name not in first)]]
