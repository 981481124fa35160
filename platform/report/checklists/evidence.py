"""What a run can say about items of a checklist: one function per kind of evidence, None where it says nothing."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.report.formatting import count, estimate, label, listed, percent, plural
from equipoise.platform.report.metric_rows import external, internal
from equipoise.platform.report.operating_tables import rule_text, threshold_rule
from equipoise.platform.report.run_files import RunFiles


class Evidence(NamedTuple):
    """A sentence, the section of the report that shows more, and what the authors have to add."""

    text: str
    place: str
    open: str = ""


def _section(run: RunFiles, name: str) -> Mapping[str, Any]:
    value = run.study.get(name)
    return value if isinstance(value, Mapping) else {}


def _roles(run: RunFiles) -> tuple[list[str], list[str]]:
    if run.patients is None:
        return [], []
    of_role = run.patients.drop_duplicates("cohort")
    return tuple(
        sorted(of_role.loc[of_role["role"] == role, "cohort"].astype(str)) for role in ("develop", "external")
    )  # type: ignore[return-value]


def _intended_use(run: RunFiles) -> Evidence | None:
    stated = _section(run, "report").get("intended_use")
    return Evidence(str(stated), "verdict") if stated else None


def _design(run: RunFiles) -> Evidence | None:
    develop, outside = _roles(run)
    if not develop:
        return None
    more = (
        f", and evaluation on {plural(len(outside), 'external cohort')}"
        if outside
        else "; no external evaluation"
    )
    return Evidence(
        f"Development on {plural(len(develop), 'cohort')} with internal validation{more}.", "splits"
    )


def _cohorts(run: RunFiles) -> Evidence | None:
    develop, outside = _roles(run)
    if not develop:
        return None
    beside = listed(outside) if outside else "none"
    return Evidence(f"Development: {listed(develop)}. External: {beside}.", "flow", "whom they represent")


def _sites(run: RunFiles) -> Evidence | None:
    if run.patients is None:
        return None
    return Evidence(f"{plural(run.patients['site'].nunique(), 'site')}.", "flow", "setting, places and dates")


def _exclusions(run: RunFiles) -> Evidence | None:
    if run.excluded is None:
        return None
    number = plural(len(run.excluded), "exclusion")
    return Evidence(
        f"{number} of patients or slides, each with stage and reason.", "flow", "clinical criteria"
    )


def _preprocessing(run: RunFiles) -> Evidence | None:
    features = _section(run, "features")
    if run.slides is None or run.slides.empty or not features.get("encoder"):
        return None
    return Evidence(
        f"Tiles of {features.get('tile_px')} px at {features.get('mpp')} µm/px with at least "
        f"{percent(float(features.get('min_tissue') or 0))} tissue; slides that fail are listed with their reasons.",
        "quality",
    )


def _outcomes(run: RunFiles) -> Evidence | None:
    if not run.tasks:
        return None
    names = [f"{task.name} ({task.kind})" for task in run.tasks]
    return Evidence(f"{listed(names, 8)}.", "flow", "how and when each was assessed")


def _predictors(run: RunFiles) -> Evidence | None:
    features, cohorts = _section(run, "features"), run.study.get("cohorts") or []
    slides = run.slides is not None and not run.slides.empty
    names = [f"features of the tiles by {features['encoder']}"] if slides and features.get("encoder") else []
    omics = [
        str(name) for cohort in cohorts if isinstance(cohort, Mapping) for name in cohort.get("omics") or {}
    ]
    names += [f"table {name}" for name in dict.fromkeys(omics)]
    if not names:
        return None
    return Evidence(
        f"{listed(names, 6).capitalize()}.", "provenance", "why these, and how they were measured"
    )


def _missing(run: RunFiles) -> Evidence | None:
    if run.patients is None:
        return None
    return Evidence(
        "Patients without the label of a task take no part in that task; labels are never imputed. Counts by "
        "cohort are given, with reasons.",
        "flow",
    )


def _splits(run: RunFiles) -> Evidence | None:
    if not run.splits:
        return None
    sizes = [f"{len(f['train'])}/{len(f['val'])}/{len(f['test'])}" for f in run.splits[:3]]
    more = " …" if len(run.splits) > 3 else ""
    return Evidence(
        f"{plural(len(run.splits), 'fold')}, scheme {_section(run, 'splits').get('scheme')}: patients for training, "
        f"inner validation and test {', '.join(sizes)}{more}.",
        "splits",
    )


def _model(run: RunFiles) -> Evidence | None:
    model, balancing, training = (_section(run, name) for name in ("model", "balancing", "training"))
    if not model.get("kind"):
        return None
    tuned = "settings searched on inner folds" if run.study.get("search") else "settings fixed in the study"
    return Evidence(
        f"Model {model['kind']}, weighting {balancing.get('weighting', 'equal')}, aggregation "
        f"{balancing.get('aggregation', 'none')}, at most {training.get('epochs', '–')} epochs, early stopping on "
        f"inner validation; {tuned}.",
        "training",
    )


def _heterogeneity(run: RunFiles) -> Evidence | None:
    sites = {row["site"] for row in run.metric_rows if row["site"] != "all"}
    if not sites:
        return None
    return Evidence(
        f"Main metrics by cohort and by {plural(len(sites), 'site')}, with intervals.", "external"
    )


def _measures(run: RunFiles) -> Evidence | None:
    names = list(dict.fromkeys(label(str(row["metric"])) for row in run.metric_rows))
    if not names:
        return None
    return Evidence(f"{listed(names, 12)}, with {percent(run.confidence)} intervals.", "classification")


def _updating(run: RunFiles) -> Evidence | None:
    return Evidence("The model was not updated or recalibrated.", "limits") if run.metric_rows else None


def _predictions(run: RunFiles) -> Evidence | None:
    if run.predictions is None:
        return None
    return Evidence(
        "By the fold models (test folds) and by the mean of their scores (external cohorts).", "external"
    )


def _imbalance(run: RunFiles) -> Evidence | None:
    weights = _section(run, "training").get("class_weights")
    return Evidence(f"Class weights: {weights}.", "training") if weights else None


def _threshold(run: RunFiles) -> Evidence | None:
    if not any(task.kind == "binary" for task in run.tasks):
        return None
    rule = rule_text(threshold_rule(run).label)
    return Evidence(
        f"Probabilities. Operating point: {rule}, fixed on inner validation patients before the test.",
        "classification",
    )


def _code(run: RunFiles) -> Evidence | None:
    code = run.environment.get("code")
    commit = str(code.get("commit") or "")[:12] if isinstance(code, Mapping) else ""
    if not run.environment:
        return None
    return Evidence(
        f"Equipoise {run.environment.get('equipoise', '')}{f', commit {commit}' if commit else ''}; the study file "
        "is in the report.",
        "provenance",
        "availability of the data",
    )


def _flow(run: RunFiles) -> Evidence | None:
    return Evidence("A diagram for each cohort.", "flow") if run.flow else None


def _table_one(run: RunFiles) -> Evidence | None:
    if run.patients is None:
        return None
    return Evidence(
        "Table 1 by cohort, with missing labels.", "methods", "demographic and clinical characteristics"
    )


def _events(run: RunFiles) -> Evidence | None:
    parts = []
    for task in run.tasks:
        row = internal(run, task.name, PRIMARY.get(task.kind, ""))
        if row is not None:
            cases = f", {count(row['n_pos'])} positive or with event" if row["n_pos"] == row["n_pos"] else ""
            parts.append(f"{task.name}: {plural(int(row['n']), 'test patient')}{cases}")
    return Evidence("; ".join(parts) + ".", "splits") if parts else None


def _specification(run: RunFiles) -> Evidence | None:
    if not run.study:
        return None
    return Evidence(
        "All settings are in the report; 'equipoise export' writes the model with its card.", "provenance"
    )


def _performance(run: RunFiles) -> Evidence | None:
    if not run.tasks or not run.metric_rows:
        return None
    main = run.tasks[0]
    metric = PRIMARY[main.kind]
    row, outside = internal(run, main.name, metric), external(run, main.name, metric)
    if row is None:
        return None
    more = "".join(f"; {other['cohort']} {estimate(other, 2)}" for other in outside[:3])
    return Evidence(f"{label(metric)} of {main.name}: test folds {estimate(row, 2)}{more}.", "verdict")


def _limits(run: RunFiles) -> Evidence | None:
    return (
        Evidence("Limits that follow from the run are listed.", "limits", "those of the design")
        if run.study
        else None
    )


def _software(run: RunFiles) -> Evidence | None:
    versions = run.environment.get("versions")
    if not isinstance(versions, Mapping):
        return None
    named = [f"{name} {version}" for name, version in versions.items()][:4]
    return Evidence(
        f"Equipoise {run.environment.get('equipoise', '')}, {', '.join(named)}.", "provenance", "scanners"
    )


def _blinding(run: RunFiles) -> Evidence | None:
    if run.leakage is None:
        return None
    failed = int((~run.leakage["ok"]).sum())
    if failed:
        return Evidence(f"The leakage audit failed {plural(failed, 'check')}.", "splits")
    return Evidence("The model saw no label of a test patient: the leakage audit passed.", "splits")


def _two_by_two(run: RunFiles) -> Evidence | None:
    if run.predictions is None or not any(task.kind in ("binary", "multiclass") for task in run.tasks):
        return None
    return Evidence(
        "A table at the fixed cut-off for the test folds and for each external cohort.", "classification"
    )


def _audit(run: RunFiles) -> Evidence | None:
    if run.predictions is None:
        return None
    return Evidence("Every prediction is stored in evaluation/predictions.parquet of the run.", "provenance")


EVIDENCE: dict[str, Callable[[RunFiles], Evidence | None]] = {
    "intended_use": _intended_use, "design": _design, "cohorts": _cohorts, "sites": _sites, "exclusions": _exclusions,
    "preprocessing": _preprocessing, "outcomes": _outcomes, "predictors": _predictors, "missing": _missing,
    "splits": _splits, "model": _model, "heterogeneity": _heterogeneity, "measures": _measures, "updating": _updating,
    "predictions": _predictions, "imbalance": _imbalance, "threshold": _threshold, "code": _code, "flow": _flow,
    "table_one": _table_one, "events": _events, "specification": _specification, "performance": _performance,
    "limits": _limits, "software": _software, "blinding": _blinding, "two_by_two": _two_by_two, "audit": _audit,
}  # fmt: skip
