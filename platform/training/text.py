"""Banks of label embeddings, fitted on training labels: sentences, projection, centre, intervals of survival.

Everything is a function of training patients: another test patient changes no interval, centre or target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from equipoise.models.text.params import LabelText
from equipoise.models.text.projector import Projector
from equipoise.models.text.protocol import TextEncoder, encode_once
from equipoise.models.text.sentences import class_sentences, survival_sentences
from equipoise.models.text.target import TextTarget
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import get
from equipoise.platform.training.params import entry_params

if TYPE_CHECKING:
    from equipoise.datasets.tables.tasks import BinaryTask, Task
    from equipoise.models.text.params import TextParams
    from equipoise.platform.training.statistics import LifeTable


def load_text_encoder(params: TextParams) -> TextEncoder:
    """The text encoder of a study.

    Raises
    ------
    StudyError
        If a package or a file is missing.
    """
    own = entry_params("text_encoders", params.encoder, params.encoder_params)
    try:
        return get("text_encoders", params.encoder).load()(own)
    except ValueError as error:
        raise StudyError(str(error), where="training.text.encoder") from error


def class_target(task: Task, counts: Sequence[int], params: TextParams, encoder: TextEncoder) -> TextTarget:
    """The bank of a binary or multiclass task, centred on the mean target of ``counts`` training labels per class."""
    text = _label_text(task, params)
    names = task.class_names
    if task.type == "binary":  # the negative class has a name only where labels are given
        names = (_negative(task), *names)
    try:
        sentences = class_sentences(names, text)
    except ValueError as error:
        raise StudyError(str(error), where=f"training.text.labels.{task.name}") from error
    shares = np.maximum(np.asarray(counts, float), 0)
    target = _target(task, sentences, shares, params, encoder, ordinal=False)
    seen = tuple((shares > 0).tolist())
    return target if all(seen) or not any(seen) else replace(target, seen=seen)


def survival_target(
    task: Task, table: LifeTable, params: TextParams, encoder: TextEncoder
) -> tuple[tuple[float, ...], TextTarget]:
    """Edges in days, and the bank of the intervals between them."""
    survival = table.survival
    edges = kaplan_meier_edges(table, params.bins)
    before = survival_before(table, edges)
    mass = -np.diff(np.concatenate([[1.0], before, [0.0]]))
    sentences = survival_sentences(edges, _label_text(task, params).site)
    target = _target(
        task,
        sentences,
        mass,
        params,
        encoder,
        ordinal=params.ordinal,
        days=tuple(table.days.tolist()),
        survival=tuple(survival.tolist()),
    )
    return edges, target


def _negative(task: BinaryTask) -> str:
    if task.cutoff is not None:
        return f"<{task.cutoff:g}"
    return task.negative[0] if task.negative else f"not {task.positive[0]}"


def kaplan_meier_edges(table: LifeTable, bins: int) -> tuple[float, ...]:
    """Days of events that cut what falls off the Kaplan-Meier curve into about equal parts, ascending.

    Without censoring these are quantiles of the event times. Fewer than ``bins - 1`` where events are tied or few.
    """
    if not len(table.days):
        return ()
    fallen = 1 - np.concatenate([[1.0], table.survival])[:-1]  # just before each event
    wanted = (1 - table.survival[-1]) * np.arange(1, bins) / bins
    at = np.searchsorted(fallen, wanted - 1e-12)
    chosen = np.unique(at[(at > 0) & (at < len(table.days))])
    return tuple(table.days[chosen].tolist())


def survival_before(table: LifeTable, days: Sequence[float] | np.ndarray) -> np.ndarray:
    """The curve just before each of these days."""
    return np.concatenate([[1.0], table.survival])[np.searchsorted(table.days, np.asarray(days, float))]


def _target(
    task: Task,
    sentences: tuple[str, ...],
    shares: np.ndarray,
    params: TextParams,
    encoder: TextEncoder,
    *,
    ordinal: bool,
    days: tuple[float, ...] = (),
    survival: tuple[float, ...] = (),
) -> TextTarget:
    if len(set(sentences)) < len(sentences):
        raise StudyError(
            f"two labels of task {task.name} have the same sentence: {'; '.join(sentences)}",
            where="training.text.labels",
        )
    projector = Projector(params.seed, encoder.dim, params.dim)
    bank = _unit(projector(encode_once(encoder, sentences)))
    shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(sentences), 1 / len(sentences))
    if ordinal and len(sentences) > 1:
        bank = _arc(bank[0], bank[-1], np.cumsum(shares) - shares / 2)
    elif params.centre and np.count_nonzero(shares) > 1:
        bank = _unit(bank - shares @ bank)
    return TextTarget(
        sentences,
        tuple(map(tuple, bank.astype(np.float32).astype(float).tolist())),
        params.loss,
        params.temperature,
        params.spread,
        encoder.fingerprint,
        projector,
        days,
        survival,
    )


def _arc(first: np.ndarray, last: np.ndarray, places_K: np.ndarray) -> np.ndarray:
    """``[K, d]`` on the half circle that leads from one direction to the opposite one, in the plane of two vectors.

    The cosine of two places is that of π times their distance, so that it falls with every step between them.
    """
    across = _unit((last - first)[None])[0]
    middle = _unit((last + first)[None])[0]
    angle = math.pi * (places_K - 0.5)
    return np.cos(angle)[:, None] * middle + np.sin(angle)[:, None] * across


def _unit(x_KD: np.ndarray) -> np.ndarray:
    return x_KD / np.maximum(np.linalg.norm(x_KD, axis=1, keepdims=True), 1e-12)


def _label_text(task: Task, params: TextParams) -> LabelText:
    return params.labels.get(task.name, LabelText())
