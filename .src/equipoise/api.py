"""Equipoise as a library: the parts that people use alone, each a few lines in a notebook.

Importing this module loads neither torch nor Ray nor pandas; each function imports what it needs. ``docs/api.md`` has
an example for every function. These names are stable: what changes keeps its old form for one version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from pydantic import BaseModel
    from torch import Tensor, nn
    from torch.utils.data import DataLoader

    from equipoise.datasets.slides.reader import SlideReader
    from equipoise.datasets.store.feature_store import FeatureStore
    from equipoise.models.balancing.loss_balancer import LossBalancer
    from equipoise.platform.extraction.single_slide import ExtractedSlide
    from equipoise.platform.federation.result import FederationResult
    from equipoise.platform.run.results import RunResults

Section = TypeVar("Section", bound="BaseModel")

__all__ = [
    "balancer",
    "extract_slide",
    "extract_slides",
    "federate",
    "load_run",
    "metrics",
    "open_slide",
    "open_store",
    "read_region",
]


def open_slide(path: str | Path, mpp: float | None = None) -> SlideReader:
    """Open a whole-slide image.

    Parameters
    ----------
    path
        A file, the folder of a DICOM slide, or an address (``s3://…``), which is copied to this machine first.
    mpp
        Pixel size at level 0 in um/px, for a slide that states none or a wrong one.

    Returns
    -------
    A reader with ``dimensions`` (width and height at level 0), ``mpp``, ``mpp_source``, ``level_dimensions``,
    ``level_downsamples``, ``vendor``, ``read(...)``, ``thumbnail(mpp)`` and ``close()``; also a context manager.
    Several threads may read from it.

    Raises
    ------
    SlideProblem
        A :class:`DataError` whose ``status`` is ``missing``, ``not_a_slide``, ``unreadable``, ``no_mpp`` or
        ``mpp_out_of_range`` (outside 0.1-5).

    Examples
    --------
    >>> slide = open_slide("crc.svs")
    """
    from equipoise.datasets.slides.reader import open_slide

    return open_slide(path, mpp)


def read_region(slide: SlideReader, x: int, y: int, size: tuple[int, int], mpp: float) -> NDArray[np.uint8]:
    """Read a rectangle of a slide at an exact resolution.

    Pixels are averaged over their exact footprint on the coarsest level that is not coarser than ``mpp``; nothing is
    ever upsampled.

    Parameters
    ----------
    slide
        From :func:`open_slide`.
    x, y
        Top-left corner in level-0 pixels.
    size
        Width and height of the result in pixels of ``mpp``.
    mpp
        Resolution of the result in um/px.

    Returns
    -------
    uint8 ``[height, width, 3]``, RGB, white where the slide has no pixels.

    Raises
    ------
    SlideProblem
        ``upsampling`` if the slide is coarser than ``mpp``, ``unreadable`` if pixels cannot be decoded.

    Examples
    --------
    >>> pixels = read_region(slide, x=2048, y=1024, size=(512, 512), mpp=0.5)
    """
    width, height = size
    scale = mpp / slide.mpp
    return slide.read(x, y, width * scale, height * scale, size)


def extract_slide(
    path: str | Path,
    encoder: str = "handcrafted",
    *,
    mpp: float = 0.5,
    tile_px: int = 224,
    slide_mpp: float | None = None,
    qc: str | Path | None = None,
    **settings: Any,
) -> ExtractedSlide:
    """Tile one slide and encode its tiles, in this process.

    The same code as in an extraction on Ray: the same slide gives the same features. A slide that cannot be used is
    no exception; its ``status`` says why.

    Parameters
    ----------
    path
        A file, the folder of a DICOM slide, or an address (``s3://…``).
    encoder
        Tile encoder, see ``equipoise ls encoders``.
    mpp, tile_px
        Resolution in um/px and side of a tile in pixels.
    slide_mpp
        Pixel size of the slide at level 0 in um/px, where the file states none.
    qc
        Folder for a picture of the slide with its tissue and tiles, and the same as GeoJSON.
    settings
        Any other key of a study's ``features`` section, for example ``encoder_params={"weights": "uni.safetensors"}``
        or ``min_tissue=0.5``.

    Returns
    -------
    ``features`` float16 ``[N, D]``, ``coords`` int32 ``[N, 2]`` (top-left corners in level-0 pixels), ``status``,
    ``error`` and ``metadata`` of the slide.

    Raises
    ------
    StudyError
        If a setting is unknown or does not fit the encoder.
    ResourceError
        If the weights of the encoder are missing.

    Examples
    --------
    >>> tiles = extract_slide("crc.svs", mpp=1.0)
    """
    chosen = {"mpp": mpp, "tile_px": tile_px, "slide_mpp": slide_mpp, "qc": qc, **settings}
    [slide] = extract_slides([path], encoder, **chosen)
    return slide


def extract_slides(
    paths: Iterable[str | Path],
    encoder: str = "handcrafted",
    *,
    slide_mpp: float | None = None,
    qc: str | Path | None = None,
    **settings: Any,
) -> Iterator[ExtractedSlide]:
    """As :func:`extract_slide`, for several slides one after the other; the encoder is loaded once.

    Use ``equipoise extract`` for many slides: it works on all cores and resumes.

    Examples
    --------
    >>> counts = {slide.path: len(slide.coords) for slide in extract_slides(["a.svs", "b.svs"])}
    """
    from equipoise.platform.extraction.encoders import load_encoder
    from equipoise.platform.extraction.params import ExtractionParams
    from equipoise.platform.extraction.single_slide import extract_one_slide

    params = _checked(ExtractionParams, {"encoder": encoder, **settings}, "extract_slide")
    loaded = load_encoder(params)
    return (extract_one_slide(path, loaded, params, slide_mpp, qc) for path in paths)


def open_store(path: str | Path) -> FeatureStore:
    """Open a feature store to read it.

    Parameters
    ----------
    path
        The store's folder or address, or a folder with a single store somewhere below it.

    Returns
    -------
    A store with ``read(slide)`` → features float16 ``[N, D]`` (a read-only view of the mapped file) and coords int32
    ``[N, 2]``; ``index()``, a table of all slides with status and reason; and ``spec``, what made the features.

    Raises
    ------
    DataError
        If there is no store, or there are several.

    Examples
    --------
    >>> features, coords = open_store("features").read("crc.svs")
    """
    from equipoise.datasets.remote.addresses import is_remote
    from equipoise.datasets.store.feature_store import FeatureStore
    from equipoise.datasets.store.listing import find_stores
    from equipoise.platform.errors import DataError

    if is_remote(str(path)):
        return FeatureStore.open(path)
    stores = find_stores(path)
    if len(stores) > 1:
        names = ", ".join(str(store.relative_to(path)) for store in stores)
        raise DataError(f"{len(stores)} feature stores: {names}", where=str(path), fix="name one of them")
    return FeatureStore.open(stores[0])


def balancer(
    model: nn.Module,
    losses: Iterable[str] | Mapping[str, Any] | Sequence[Any],
    method: str | Mapping[str, Any] = "equal",
    *,
    main: Iterable[str] = (),
    shared: Iterable[nn.Parameter] | None = None,
    seed: int = 0,
    reduce: Callable[[Tensor], Tensor] | None = None,
    workers: int = 1,
    total_steps: int | None = None,
) -> LossBalancer:
    """Balance several losses in one's own training loop.

    ``balance.step(losses, optimizer)`` takes the place of ``loss.backward()`` and ``optimizer.step()``.

    Parameters
    ----------
    model
        Any module, on its device (not wrapped for data parallel training).
    losses
        What is balanced: names, or a dictionary or list of losses, of which only the names or positions count.
    method
        ``<weighting>`` or ``<weighting>+<aggregator>`` (``equipoise ls weightings``, ``equipoise ls aggregators``), for
        example ``uncertainty+pcgrad``; or a dictionary with ``weighting``, ``weighting_params``, ``aggregation``,
        ``aggregation_params``, ``rescale``, ``at`` and ``every``, as in a study.
    main
        Losses that the others serve, for ``auto_lambda``; the first one if not given.
    shared
        Parameters whose gradients are combined; found from the first step's losses if not given.
    seed
        Of methods that draw random numbers.
    reduce
        Mean of a tensor over workers, for training in several processes.
    workers
        How many processes there are, for ``at: representation``.
    total_steps
        Of the whole training, if it is known: weights that are learned then get as far as they need in a short one.

    Returns
    -------
    An object with ``step(losses, optimizer, forward=…, validation=…, samples=…, representation=…)``;
    ``backward(losses)`` where the optimiser steps elsewhere; ``end_epoch()``; ``weights``, how much each loss counted
    in the last step; ``needs``, which of the three callables this method asks for; ``state_dict()`` and
    ``load_state_dict(state)``. A loss that a batch has no labels for is None or absent. Losses are scalars; one that
    is NaN or infinite is refused.

    Raises
    ------
    StudyError
        If a name or parameter is unknown, or the two parts cannot be combined.
    ValueError
        If there is no loss, a name comes twice, or the model is wrapped.

    Examples
    --------
    >>> balance = balancer(model, ["grade", "msi"], "uncertainty+pcgrad")
    >>> balance.step({"grade": grade_loss, "msi": msi_loss}, optimizer)
    """
    from equipoise.models.balancing.protocol import identity_reduce
    from equipoise.platform.training.build import build_loss_balancer

    mean = reduce or identity_reduce
    return build_loss_balancer(
        model,
        losses,
        method,
        main=main,
        shared=shared,
        seed=seed,
        reduce=mean,
        workers=workers,
        total_steps=total_steps,
    )


def federate(
    model_fn: Callable[[], nn.Module],
    loaders: Mapping[str, DataLoader[Any]] | Sequence[DataLoader[Any]],
    strategy: str = "fedavg",
    *,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    rounds: int = 20,
    seed: int = 0,
    folder: str | Path | None = None,
    **settings: Any,
) -> FederationResult:
    """Train one's own model on the data of several clients, simulated in this process.

    Parameters
    ----------
    model_fn
        Makes the model; its random initial weights follow from ``seed``. Every parameter is shared by all clients.
    loaders
        Client → loader of its training data; a list names clients ``0``, ``1``, … A client weighs as much as its data
        set has items.
    strategy
        See ``equipoise ls strategies``.
    loss_fn
        ``loss_fn(model, batch)`` → scalar loss, the mean over the batch.
    rounds
        Rounds; for an asynchronous strategy, steps of the server.
    seed
        Of everything random, shuffled loaders included: equal seeds give equal weights, bit for bit.
    folder
        Where rounds are saved and resumed from; nothing is written if not given.
    settings
        Any other key of a study's ``federation`` section, for example ``local={"lr": 0.01, "epochs": 2}``,
        ``strategy_params``, ``server_aggregation``, ``participation`` or ``privacy``.

    Returns
    -------
    ``model`` with the global weights (on the CPU, in evaluation mode), ``personal_model(client)``, ``history`` (a row
    per round), ``manifests`` and ``audit_log`` (what left each client).

    Raises
    ------
    StudyError
        If a setting is unknown, settings do not fit together, or one needs patients (``local.batch``, ``sites``,
        ``evaluation``, privacy of patients, Ray).
    DataError
        If there is no client, or one without data.
    FederationError
        If three rounds in a row have too few usable updates. A client whose loss is NaN or infinite counts as failed
        in the round, ``audit_log`` has the reason, and the others go on.

    Examples
    --------
    >>> result = federate(Net, {"A": loader_a, "B": loader_b}, "scaffold", loss_fn=loss_fn, local={"optimizer": "sgd"})
    """
    from equipoise.platform.federation.params import FederationParams
    from equipoise.platform.federation.simulation.loaders import federate_loaders

    named = loaders if isinstance(loaders, Mapping) else {str(i): each for i, each in enumerate(loaders)}
    params = _checked(FederationParams, {"strategy": strategy, "rounds": rounds, **settings}, "federate")
    return federate_loaders(
        model_fn, named, loss_fn, params, seed=seed, folder=None if folder is None else Path(folder)
    )


def metrics(
    table: pd.DataFrame | str | Path | Sequence[pd.DataFrame | str | Path],
    *,
    positive: str | None = None,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Metrics with intervals from predictions.

    Parameters
    ----------
    table
        Our predictions table (a frame or ``predictions.parquet``), or STAMP's ``patient-preds.csv`` (a frame or file;
        several of them are the folds of one cross-validation). See ``docs/api.md`` for the columns.
    positive
        For a binary task in STAMP's layout: the class whose score counts. Without it both classes get metrics.
    bootstrap, confidence
        Draws of the bootstrap of silhouettes, and level of the intervals.
    seed
        Of the bootstrap.

    Returns
    -------
    One row per role, cohort, site, task, class, predictor, metric and fold, with ``value``, ``low``, ``high`` (for
    these models), ``low_procedure``, ``high_procedure`` (for the procedure that trained them), ``n``, ``n_pos``,
    ``estimand``, ``method`` and ``note``. What is not estimable is NaN, and ``note`` says why; operating points need
    predictions of validation patients, which STAMP's tables do not have.

    Raises
    ------
    DataError
        If the table has neither layout or holds impossible values.

    Examples
    --------
    >>> metrics("patient-preds.csv", positive="MSIH")[["metric", "value", "low", "high"]]
    """
    import pandas as pd

    from equipoise.platform.evaluation.evaluate import evaluate
    from equipoise.platform.evaluation.params import EvaluationParams
    from equipoise.platform.evaluation.stamp_import import read_any

    tables = [table] if isinstance(table, pd.DataFrame | str | Path) else list(table)
    predictions = read_any(tables, positive)
    return evaluate(predictions, EvaluationParams(bootstrap=bootstrap, confidence=confidence), seed)


def load_run(path: str | Path) -> RunResults:
    """The results in a run folder.

    Parameters
    ----------
    path
        ``runs/<study>``, or the folder or address that ``-o`` named.

    Returns
    -------
    An object with ``predictions``, ``metrics``, ``folds`` and ``history`` (tables), ``manifest`` (tables by name),
    ``study`` and ``status`` (dictionaries). Each is read when it is first asked for, and raises a :class:`DataError`
    that names the missing command if the run has not come so far.

    Raises
    ------
    DataError
        If this is no run folder.

    Examples
    --------
    >>> load_run("demo/run").metrics.query("metric == 'auroc'")
    """
    from equipoise.platform.run.results import RunResults

    return RunResults(path)


def _checked(section: type[Section], settings: dict[str, Any], function: str) -> Section:
    """The settings, checked as that section of a study is."""
    from pydantic import ValidationError

    from equipoise.platform.errors import StudyError

    try:
        return section.model_validate(settings)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        lines = "; ".join(problem.removeprefix(": ").replace("Value error, ", "") for problem in problems)
        raise StudyError(lines, where=f"settings of {function}") from error
