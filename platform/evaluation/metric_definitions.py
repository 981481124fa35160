"""Definitions of the metrics of each kind of task: how to compute them on a group, and when they are undefined."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.platform.evaluation import influence as influences
from equipoise.platform.evaluation import metrics, survival_scores
from equipoise.platform.evaluation.calibration import PredictedSurvival
from equipoise.platform.evaluation.intervals import (
    AUROC_INFLATION,
    CONCORDANCE_INFLATION,
    FISHER,
    LOG,
    LOG_REST,
    LOGIT,
    PEARSON_INFLATION,
    PLAIN,
    Inflation,
    Scale,
)
from equipoise.platform.evaluation.samples import FOLD_MODELS, MODEL, Sample, ScoredPatients
from equipoise.platform.evaluation.silhouette import DEFINITION, DISTANCES, Distance, silhouette

Floats = NDArray[np.float64]

#: The main metric of a kind of task, used in summaries, forest plots and the verdict.
PRIMARY = {"binary": "auroc", "multiclass": "auroc", "regression": "pearson", "survival": "c_index"}
#: Value of a predictor without information, where it does not depend on the data.
CHANCE_LEVEL = {
    "auroc": 0.5, "balanced_accuracy": 0.5, "pearson": 0.0, "r2": 0.0,
    "c_index": 0.5, "c_stratified": 0.5, "c_uno": 0.5, "auc_dynamic": 0.5,
}  # fmt: skip
#: Metrics for which lower is better.
LOWER_IS_BETTER = frozenset({"mae", "ibs"})


@dataclass(frozen=True)
class MetricDefinition:
    """One metric of a task or, in multiclass tasks, of a class (``column`` is None for the task as a whole).

    ``value(group, weight)`` returns ``[...]``; ``undefined(group)`` returns the reason why the value would be NaN, or
    None. ``interval`` is False for values that are known rather than estimated (baselines, thresholds).
    ``of_latents``: computed from the inputs of the head, not from scores; its interval is a bootstrap, because the
    influence of a patient on the distances of the others was never measured.
    ``influence(group)`` returns ``[N]`` (:mod:`equipoise.platform.evaluation.influence`); None is the leave-one-out
    jackknife of ``value``. ``remark(groups)`` is said about all groups
    together. ``scale`` and ``inflation``: see :mod:`equipoise.platform.evaluation.intervals`.
    """

    metric: str
    value: Callable[[ScoredPatients, ArrayLike | None], Floats]
    undefined: Callable[[ScoredPatients], str | None]
    column: int | None = 0
    class_name: str = ""
    predictor: str = MODEL
    interval: bool = True
    of_latents: bool = False
    caution: Callable[[ScoredPatients], str] = field(default=lambda group: "")
    influence: Callable[[ScoredPatients], Floats] | None = None
    scale: Scale = PLAIN
    inflation: Inflation = AUROC_INFLATION
    remark: Callable[[Sequence[ScoredPatients]], str] = field(default=lambda groups: "")

    def influence_of(self, group: ScoredPatients) -> Floats:
        """Influence ``[N]`` of each patient of the group."""
        if self.influence is not None:
            return self.influence(group)
        return influences.jackknife_influence(lambda w: self.value(group, w), len(group.patient)).influence


def metric_definitions(sample: Sample) -> list[MetricDefinition]:
    """Metrics of a sample: the primary one, the others, baselines, and silhouettes if latents are known.

    Baselines of an external cohort belong to the ensemble and are not repeated for the fold models.
    """
    definitions = _of_scores(sample)
    if sample.predictor == FOLD_MODELS:
        definitions = [d for d in definitions if d.predictor == MODEL]
    return [*definitions, *_silhouettes(sample)]


def _of_scores(sample: Sample) -> list[MetricDefinition]:
    if sample.kind == "binary":
        return _binary(sample)
    if sample.kind == "multiclass":
        of_classes = [m for k, name in enumerate(sample.classes) for m in _one_class(k, name)]
        share = 1 / len(sample.classes)
        return [*of_classes, _constant("auroc", 0.5, empty), _constant("balanced_accuracy", share, empty)]
    return _regression() if sample.kind == "regression" else _survival(sample)


def _silhouettes(sample: Sample) -> list[MetricDefinition]:
    """Silhouette of the classes in the inputs of the head, by each distance; none unless every fold has latents."""
    if sample.kind not in ("binary", "multiclass") or not sample.groups:
        return []
    if any(group.latent is None for group in sample.groups):
        return []
    column = 0 if sample.kind == "binary" else None

    def label(g: ScoredPatients) -> NDArray[np.int64]:
        truth = g.target[:, 0] if sample.kind == "binary" else g.target.argmax(1)
        return truth.astype(np.int64)

    def undefined(g: ScoredPatients) -> str | None:
        _, sizes = np.unique(label(g), return_counts=True)
        if len(sizes) < 2:
            return f"all {len(g.patient)} patients are of one class"
        return "every class has a single patient" if sizes.max() == 1 else None

    def definition(distance: Distance) -> MetricDefinition:
        return MetricDefinition(
            f"silhouette_{distance}",
            lambda g, w: silhouette(g.latent, label(g), distance, w),  # type: ignore[arg-type]
            undefined,
            column,
            of_latents=True,
            caution=lambda g: DEFINITION,
        )

    return [definition(distance) for distance in DISTANCES]


def macro_metrics(kind: str) -> dict[tuple[str, str], str]:
    """(Per-class metric, predictor) → name of its mean over the classes, for multiclass tasks."""
    if kind != "multiclass":
        return {}
    return {
        ("auroc", "model"): "auroc",
        ("auprc", "model"): "auprc",
        ("sensitivity", "model"): "balanced_accuracy",
        ("auprc", "prevalence"): "auprc",
    }


def one_class(group: ScoredPatients, k: int = 0) -> str | None:
    """Reason if a class is missing."""
    positives, n = int((group.target[:, k] == 1).sum()), len(group.target)
    if n == 0:
        return "no labelled patient"
    if positives in (0, n):
        return f"all {n} patients are {'positive' if positives else 'negative'}"
    return None


def empty(group: ScoredPatients) -> str | None:
    """Reason if nobody has a label."""
    return None if len(group.patient) else "no labelled patient"


def _auroc(undefined: Callable[[ScoredPatients], str | None], k: int = 0, name: str = "") -> MetricDefinition:
    return MetricDefinition(
        "auroc",
        lambda g, w: metrics.auroc(g.target[:, k], g.score[:, k], w),
        undefined,
        k,
        name,
        influence=lambda g: influences.auroc_influence(g.target[:, k], g.score[:, k]).influence,
        scale=LOGIT,
    )


def _auprc(undefined: Callable[[ScoredPatients], str | None], k: int = 0, name: str = "") -> MetricDefinition:
    return MetricDefinition(
        "auprc",
        lambda g, w: metrics.average_precision(g.target[:, k], g.score[:, k], w),
        undefined,
        k,
        name,
        influence=lambda g: influences.average_precision_influence(g.target[:, k], g.score[:, k]).influence,
        scale=LOGIT,
    )


def _called(g: ScoredPatients, truth: int) -> Floats:
    """Influence on the share of patients of a class that are called so at the threshold."""
    called = g.score[:, 0] >= g.threshold
    of_class = g.target[:, 0] == truth
    return influences.mean_influence(called if truth else ~called, of_class).influence


def _binary(sample: Sample) -> list[MetricDefinition]:
    def at_threshold(compute: Callable[..., Floats]) -> Callable[[ScoredPatients, ArrayLike | None], Floats]:
        return lambda g, w: compute(g.target[:, 0], g.score[:, 0] >= g.threshold, w)

    def no_threshold(g: ScoredPatients) -> str | None:
        if np.isnan(g.threshold):
            if not g.validated:
                return "no threshold, because there are no validation patients to choose it on"
            return "no threshold, because the validation part lacks a class"
        return one_class(g)

    def partly(g: ScoredPatients) -> str:
        return g.threshold_note

    def threshold(g: ScoredPatients, _: ArrayLike | None) -> Floats:
        return np.asarray(g.threshold)

    decision = partial(
        MetricDefinition, undefined=no_threshold, caution=partly, remark=_one_sided_calls, scale=LOGIT
    )
    definitions = [_auroc(one_class), _auprc(one_class)]
    if (
        sample.role != "val"
    ):  # with a threshold chosen on the same patients these values would be too optimistic
        definitions += [
            decision(
                "balanced_accuracy",
                at_threshold(metrics.balanced_accuracy),
                influence=lambda g: (_called(g, 1) + _called(g, 0)) / 2,
            ),
            decision("sensitivity", at_threshold(metrics.sensitivity), influence=lambda g: _called(g, 1)),
            decision("specificity", at_threshold(metrics.specificity), influence=lambda g: _called(g, 0)),
            MetricDefinition("threshold", threshold, no_threshold, interval=False, caution=partly),
        ]
    return [*definitions, _constant("auroc", 0.5, one_class), _prevalence(0, "")]


def _one_sided_calls(groups: Sequence[ScoredPatients]) -> str:
    """Says where a threshold calls nobody, or everybody, positive: it decides nothing there."""
    usable = [g for g in groups if not np.isnan(g.threshold) and len(g.patient)]
    notes = []
    for who, found in (
        ("nobody", [g for g in usable if not (g.score[:, 0] >= g.threshold).any()]),
        ("everybody", [g for g in usable if (g.score[:, 0] >= g.threshold).all()]),
    ):
        if found:
            where = f" in {len(found)} of {len(usable)} parts" if len(usable) > 1 else ""
            notes.append(f"the threshold calls {who} positive{where}")
    return "; ".join(notes)


def _one_class(k: int, name: str) -> list[MetricDefinition]:
    def undefined(g: ScoredPatients) -> str | None:
        return one_class(g, k)

    return [
        _auroc(undefined, k, name),
        _auprc(undefined, k, name),
        MetricDefinition(
            "sensitivity",
            lambda g, w: metrics.sensitivity(g.target[:, k], g.score.argmax(1) == k, w),
            undefined,
            k,
            name,
            influence=lambda g: (
                influences.mean_influence(g.score.argmax(1) == k, g.target[:, k] == 1).influence
            ),
            scale=LOGIT,
        ),
        _prevalence(k, name),
    ]


def _regression() -> list[MetricDefinition]:
    def correlation_undefined(g: ScoredPatients) -> str | None:
        if len(g.score) < 3:
            return f"{len(g.score)} labelled patients; a correlation needs three"
        if np.isnan(metrics.pearson(g.target[:, 0], g.score[:, 0])):
            return f"all {'targets' if np.ptp(g.target[:, 0]) == 0 else 'predictions'} are equal"
        return None

    def r2_undefined(g: ScoredPatients) -> str | None:
        if len(g.score) < 3:
            return f"{len(g.score)} labelled patients; R² needs three"
        return "all targets are equal" if np.isnan(metrics.r2(g.target[:, 0], g.score[:, 0])) else None

    def without_reference(
        undefined: Callable[[ScoredPatients], str | None],
    ) -> Callable[[ScoredPatients], str | None]:
        missing = "no validation target to take the mean of"
        return lambda g: missing if np.isnan(g.reference) else undefined(g)

    def of_mean(compute: Callable[..., Floats]) -> Callable[[ScoredPatients, ArrayLike | None], Floats]:
        return lambda g, w: compute(g.target[:, 0], np.full(len(g.target), g.reference), w)

    trivial = partial(MetricDefinition, predictor="validation mean", interval=False)
    return [
        MetricDefinition(
            "pearson",
            lambda g, w: metrics.pearson(g.target[:, 0], g.score[:, 0], w),
            correlation_undefined,
            influence=lambda g: influences.pearson_influence(g.target[:, 0], g.score[:, 0]).influence,
            scale=FISHER,
            inflation=PEARSON_INFLATION,
        ),
        MetricDefinition(
            "r2",
            lambda g, w: metrics.r2(g.target[:, 0], g.score[:, 0], w),
            r2_undefined,
            influence=lambda g: influences.r2_influence(g.target[:, 0], g.score[:, 0]).influence,
            scale=LOG_REST,
        ),
        MetricDefinition(
            "mae",
            lambda g, w: metrics.mae(g.target[:, 0], g.score[:, 0], w),
            empty,
            influence=lambda g: influences.mean_influence(np.abs(g.target[:, 0] - g.score[:, 0])).influence,
            scale=LOG,
        ),
        trivial("r2", of_mean(metrics.r2), without_reference(r2_undefined)),
        trivial("mae", of_mean(metrics.mae), without_reference(empty)),
    ]


def _survival(sample: Sample) -> list[MetricDefinition]:
    def undefined(g: ScoredPatients) -> str | None:
        if not (g.event == 1).any():
            return f"no event among {len(g.event)} patients"
        if np.isnan(metrics.harrell_c(g.time, g.event, g.score[:, 0])):
            return "no comparable pair of patients"
        return None

    def weighted(compute: Callable[[ScoredPatients], influences.Influence]) -> partial[MetricDefinition]:
        """A metric of the weighted pairs of patients whose event was seen; it takes no weights of patients."""

        def undefined_here(g: ScoredPatients) -> str | None:
            reason = undefined(g)
            nothing = "no pair of patients is comparable before most are censored"
            return reason or (nothing if np.isnan(compute(g).value) else None)

        return partial(
            MetricDefinition,
            value=lambda g, w: compute(g).value,
            undefined=undefined_here,
            influence=lambda g: compute(g).influence,
            scale=LOGIT,
            inflation=CONCORDANCE_INFLATION,
        )

    uno = weighted(
        lambda g: survival_scores.uno_c(
            g.time, g.event, g.score[:, 0], survival_scores.horizon(g.time, g.event)
        )
    )
    dynamic = weighted(lambda g: survival_scores.mean_dynamic_auc(g.time, g.event, g.score[:, 0]))
    concordance = MetricDefinition(
        "c_index",
        lambda g, w: metrics.harrell_c(g.time, g.event, g.score[:, 0], w),
        undefined,
        caution=lambda g: g.scale_note,
        influence=lambda g: influences.concordance_influence(g.time, g.event, g.score[:, 0]).influence,
        scale=LOGIT,
        inflation=CONCORDANCE_INFLATION,
        remark=_ties,
    )
    definitions = [concordance, uno("c_uno"), dynamic("auc_dynamic")]
    if any(g.strata is not None for g in sample.groups):
        definitions.append(_stratified_concordance())
    return [*definitions, *_integrated_brier(sample), _constant("c_index", 0.5, undefined)]


def _stratified_concordance() -> MetricDefinition:
    def undefined(g: ScoredPatients) -> str | None:
        nothing = np.isnan(metrics.harrell_c(g.time, g.event, g.score[:, 0], strata=g.strata))
        return "no comparable pair of patients within a stratum" if nothing else None

    return MetricDefinition(
        "c_stratified",
        lambda g, w: metrics.harrell_c(g.time, g.event, g.score[:, 0], w, g.strata),
        undefined,
        influence=lambda g: (
            influences.concordance_influence(g.time, g.event, g.score[:, 0], g.strata).influence
        ),
        scale=LOGIT,
        inflation=CONCORDANCE_INFLATION,
    )


def _integrated_brier(sample: Sample) -> list[MetricDefinition]:
    """Integrated Brier score of the calibrated risks, and of Kaplan-Meier; none on validation patients."""
    if any(g.survival is None for g in sample.groups):
        return []

    def predicted(g: ScoredPatients) -> PredictedSurvival:
        assert g.survival is not None
        return g.survival

    def until(groups: Sequence[ScoredPatients]) -> str:
        ends = sorted({round(predicted(g).until) for g in groups if predicted(g).undefined is None})
        span = " to ".join(str(end) for end in [*ends[:1], *ends[1:][-1:]])
        return f"survival up to {span} days, calibrated on the validation patients" if ends else ""

    ibs = partial(
        MetricDefinition,
        "ibs",
        undefined=lambda g: predicted(g).undefined,
        caution=lambda g: predicted(g).note,
        remark=until,
        scale=LOG,
    )
    return [
        ibs(lambda g, w: predicted(g).brier[0].value, influence=lambda g: predicted(g).brier[0].influence),
        ibs(lambda g, w: predicted(g).brier[1].value, predictor="Kaplan-Meier", interval=False),
    ]


def _ties(groups: Sequence[ScoredPatients]) -> str:
    """Share of comparable pairs that are tied in risk, if there are any."""
    pairs = [metrics.concordance(g.time, g.event, g.score[:, 0]) for g in groups]
    comparable, tied = (sum(float(getattr(p, name)) for p in pairs) for name in ("comparable", "tied"))
    return (
        f"{tied / comparable:.1%} of the comparable pairs are tied in risk and count one half" if tied else ""
    )


def _prevalence(k: int, name: str) -> MetricDefinition:
    return MetricDefinition(
        "auprc",
        lambda g, w: metrics.prevalence(g.target[:, k], w),
        lambda g: one_class(g, k),
        k,
        name,
        predictor="prevalence",
        interval=False,
    )


def _constant(
    metric: str, value: float, undefined: Callable[[ScoredPatients], str | None]
) -> MetricDefinition:
    return MetricDefinition(
        metric, lambda g, w: np.asarray(value), undefined, predictor="chance", interval=False
    )
