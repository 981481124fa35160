"""Fills a study template from somebody's tables.

What is written is tried first, on the tables in memory and then by ``hints.check``: labels that cannot be used, folds
that cannot be made and inputs that cannot be read are left out, with a remark, so that what is written validates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.tables.tasks import RESERVED
from equipoise.platform.errors import DataError
from equipoise.platform.registry import nearest
from equipoise.platform.study.draft_trial import FOLDS, Proposal, Trial, flow
from equipoise.platform.study.table_scan import Hints, PatientTable, Scan, scan

if TYPE_CHECKING:
    from equipoise.datasets.tables.columns import Findings
    from equipoise.datasets.tables.survival_columns import SurvivalPair

#: Auxiliary measurements that a study of a biomarker learns beside it, covariates, lines of comments.
AUXILIARY, MOST_COVARIATES, MOST_OFFERED = 5, 12, 20

BINARY = (
    "- {name: MSI, type: binary, column: MSI, positive: MSI-H, negative: [MSS], exclude: [MSI-L], main: true}"
)
SURVIVAL = "- {name: OS, type: survival, time: {column: OS_MONTHS, unit: months}, event: {column: OS, event_value: 1}}"


@dataclass
class Draft:
    """The content of a drafted study; the defaults are Equipoise's own names."""

    name: str = "MY-COHORT"
    clinical: Any = "clinical.csv"
    columns: dict[str, str] = field(default_factory=dict)
    slides: Any = "slides.csv"
    slides_dir: str | None = "slides"
    with_slides: bool = True
    site: str = "cohort"
    scheme: str = "kfold"
    folds: int = FOLDS
    omics: dict[str, Any] = field(default_factory=dict)
    covariates: list[dict[str, Any]] = field(default_factory=list)
    model: str = "joint"
    remarks: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    other_tasks: list[str] = field(default_factory=list)


def biomarker(tables: Path | None, file: Path, hints: Hints | None = None) -> str:
    """A study that predicts a biomarker and auxiliary regression targets."""
    summary = "a biomarker with auxiliary targets"
    if tables is None:
        return _render(Draft(tasks=[BINARY], other_tasks=[SURVIVAL]), summary, file)
    return _drafted(tables, file, hints or Hints(), summary, survival_first=False)


def survival(tables: Path | None, file: Path, hints: Hints | None = None) -> str:
    """A study that predicts survival."""
    if tables is None:
        return _render(Draft(tasks=[SURVIVAL]), "survival", file)
    return _drafted(tables, file, hints or Hints(), "survival", survival_first=True)


def _drafted(tables: Path, file: Path, hints: Hints, summary: str, *, survival_first: bool) -> str:
    from equipoise.datasets.tables.columns import classify
    from equipoise.datasets.tables.survival_columns import survival_pairs

    base = file.parent
    found = scan(tables, base, hints)
    clinical = found.clinical
    assert clinical is not None
    _require_named(clinical, hints)
    rest = clinical.rest
    pairs = survival_pairs(rest, hints.time, hints.event)
    used = {column for p in pairs for column in (p.time, p.otherwise, p.event) if column is not None}
    findings = classify(rest, used, clinical.patients)
    draft = Draft(name=identifier(_plain_stem(tables)), clinical=clinical.source, remarks=found.remarks)
    draft.slides = draft.slides_dir = None
    if not clinical.recognised:
        keys = clinical.columns.model_dump()
        draft.columns = {role: keys[role] for role in ("patient", "file") if keys[role] is not None}
    trial = Trial(clinical, draft.name)
    named = _Names()
    families = {
        "survival": [_of_pair(pair, named) for pair in pairs],
        "binary": list(_of_classes(findings, findings.binary, named)),
        "multiclass": list(_of_classes(findings, findings.multiclass, named)),
        "regression": list(_of_numbers(findings, named)),
    }
    chosen = _choose(families, trial, found.remarks, survival_first=survival_first or hints.time is not None)
    draft.site, draft.scheme, draft.folds = trial.site, trial.scheme, trial.folds
    for pair in pairs:
        draft.remarks += [f"survival {pair.name}: {remark}" for remark in pair.remarks]
    covariates = _covariates(findings, chosen, trial)
    _describe_inputs(draft, found, covariates)
    draft.tasks = [p.line(main=i == 0 and p.values["type"] != "survival") for i, p in enumerate(chosen.tasks)]
    draft.other_tasks = [p.line() for p in chosen.others]
    text = _checked(draft, found, covariates, summary, file, hints)
    for line in _told(found, findings, pairs, draft, trial):
        hints.say(line)
    return text


def _checked(
    draft: Draft, found: Scan, covariates: list[dict[str, Any]], summary: str, file: Path, hints: Hints
) -> str:
    """The text of a draft that validates: with all inputs, else without slides, without omics, without covariates."""
    remarks, refusal = draft.remarks, None
    for left_out in ("", "slides", "omics", "covariates"):
        if left_out and not getattr(draft, left_out):
            continue
        if left_out:
            draft.remarks = [*remarks, f"{left_out} are left out: {refusal.what if refusal else ''}"]
        if left_out == "slides":
            found.slides = found.slides_dir = draft.slides = None
        elif left_out == "omics":
            found.omics = {}
        elif left_out:
            covariates = []
        if left_out:
            _describe_inputs(draft, found, covariates)
        text = _render(draft, summary, file)
        try:
            hints.check(text, file)
        except DataError as error:
            refusal = refusal or error
            continue
        return text
    assert refusal is not None
    raise refusal


def _require_named(clinical: PatientTable, hints: Hints) -> None:
    for option, column in (
        ("--time", hints.time),
        ("--event", hints.event),
        *(("--where", c) for c in hints.where),
    ):
        if column is not None and column not in clinical.table.columns:
            raise DataError(
                f"{option}: no column {column!r}{nearest(column, list(clinical.table.columns))}",
                where=clinical.shown,
                fix=f"columns: {', '.join(map(str, clinical.table.columns[:20]))}",
            )


@dataclass
class _Chosen:
    """Tasks that are written, the first of which is the main one, and those in comments."""

    tasks: list[Proposal]
    others: list[Proposal]


def _choose(
    families: dict[str, list[Proposal]], trial: Trial, remarks: Sequence[str], *, survival_first: bool
) -> _Chosen:
    """The main task, one on which folds can be made, with auxiliary measurements beside a biomarker.

    Raises
    ------
    DataError
        If no column can be the main task.
    """
    usable = {kind: [p for p in of_kind if trial.can_use(p)] for kind, of_kind in families.items()}
    order = ["survival", "binary", "multiclass", "regression"]
    if not survival_first:
        order = ["binary", "multiclass", "survival", "regression"]
    main = next(
        (
            p
            for demographic in (False, True)
            for kind in (order[:1] if survival_first else order)
            for p in usable[kind]
            if _is_demographic(p) == demographic and trial.can_fold(p)
        ),
        None,
    )
    if main is None:
        wanted = "time of follow-up with its event" if survival_first else "label"
        raise DataError(
            f"no column can be the main task: no {wanted} is left"
            + "".join(f"\n  {reason}" for reason in [*trial.reasons[:10], *remarks[:10]]),
            where=trial.clinical.shown,
            fix="name them: --time COLUMN --event COLUMN"
            if survival_first
            else "name a time of survival with --time and --event, or write the study from `equipoise init` by hand",
        )
    tasks = [main]
    if main.values["type"] in ("binary", "multiclass"):
        tasks += [p for p in usable["regression"] if not _is_demographic(p)][:AUXILIARY]
    everything = [
        p for kind in sorted(order, key=lambda k: k != "survival") for p in usable[kind] if p not in tasks
    ]
    return _Chosen(tasks, sorted(everything, key=_is_demographic))


def _is_demographic(proposal: Proposal) -> bool:
    from equipoise.datasets.tables.columns import is_demographic

    return "column" in proposal.values and is_demographic(proposal.values["column"])


def _of_pair(pair: SurvivalPair, named: _Names) -> Proposal:
    time = {"column": pair.time, "otherwise": pair.otherwise, "unit": pair.unit}
    event: dict[str, Any] = {"column": pair.event, "event_value": _labels(pair.happened)}
    event["censored_value"] = _labels(pair.censored)
    if pair.unknown:
        event["exclude"] = _labels(pair.unknown)
    values = {"name": named.of(pair.name), "type": "survival"}
    time = {key: value for key, value in time.items() if value is not None}
    return Proposal(values | {"time": time, "event": event}, "; ".join(pair.remarks))


def _of_classes(findings: Findings, columns: dict[str, list[str]], named: _Names) -> Iterator[Proposal]:
    """Tasks of columns with few values; the rarer of two is the positive one."""
    for column, classes in columns.items():
        unknown = findings.unknown.get(column)
        spelled = findings.spellings.get(column, {})
        values: dict[str, Any] = {"name": named.of(column)}
        if len(classes) == 2:
            rare, common = classes
            values |= {"type": "binary", "column": column, "positive": spelled.get(rare, rare)}
            values["negative"] = spelled.get(common, [common])
        elif spelled:
            merged = {value: name for name in classes for value in spelled.get(name, [name])}
            values |= {"type": "multiclass", "column": column, "classes": merged}
        else:
            values |= {"type": "multiclass", "column": column, "classes": list(classes)}
        yield Proposal(values | ({"exclude": list(unknown)} if unknown else {}))


def _of_numbers(findings: Findings, named: _Names) -> Iterator[Proposal]:
    """Tasks of columns with many numbers."""
    for column in findings.numeric:
        unknown = findings.unknown.get(column)
        values: dict[str, Any] = {"name": named.of(column), "type": "regression", "column": column}
        yield Proposal(values | ({"exclude": list(unknown)} if unknown else {}))


def _labels(values: Sequence[str]) -> Any:
    """One label alone, several in brackets; whole numbers as numbers."""
    plain = [int(v) if v.isdigit() and str(int(v)) == v else v for v in values]
    return plain[0] if len(plain) == 1 else plain


def _covariates(findings: Findings, chosen: _Chosen, trial: Trial) -> list[dict[str, Any]]:
    """Columns of the clinical table that a model may read beside the tasks."""
    predicted = {column for p in chosen.tasks for column in p.task.columns}
    return [
        {"column": column, "type": kind}
        | ({"missing": findings.unknown[column]} if column in findings.unknown else {})
        for column, kind in findings.covariates.items()
        if column not in predicted and trial.can_read(column, kind)
    ][:MOST_COVARIATES]


def _describe_inputs(draft: Draft, found: Scan, covariates: list[dict[str, Any]]) -> None:
    """Slides, omics, covariates, and a model that reads what is there."""
    draft.model, draft.covariates = "joint", []
    if found.slides is not None:
        draft.slides, draft.slides_dir = found.slides.source, found.slides_dir
    draft.omics = found.omics
    draft.with_slides = found.slides_dir is not None
    if draft.with_slides:
        return
    draft.covariates = covariates
    if found.slides is not None:
        draft.remarks.append(
            f"{found.slides.shown} lists slides, and none of their files lies here: set slides_dir"
        )
    if draft.omics:
        draft.model = "elastic_net"
    elif covariates:
        draft.model = "clinical"
    elif found.slides is not None:
        draft.with_slides = True  # nothing else to read: the files may lie elsewhere
    else:
        draft.remarks.append(
            "nothing that a model could read was found, so that this study can only be validated"
        )


def _told(
    found: Scan, findings: Findings, pairs: Sequence[SurvivalPair], draft: Draft, trial: Trial
) -> Iterator[str]:
    """What was seen and skipped, for the terminal."""
    clinical = found.clinical
    assert clinical is not None
    patients = clinical.patients[clinical.patients != ""].nunique()
    yield f"{clinical.shown}: {len(clinical.table)} rows of {patients} patients ({clinical.columns.patient})"
    for pair in pairs:
        other = f" or {pair.otherwise}" if pair.otherwise else ""
        yield (
            f"  survival {pair.name}: {pair.time}{other} in {pair.unit}, {pair.event} "
            f"{'/'.join(pair.happened)} is the event"
        )
    for what, columns in (
        ("labels", [*findings.binary, *findings.multiclass]),
        ("numbers", list(findings.numeric)),
        ("covariates", list(findings.covariates)),
    ):
        if columns:
            yield f"  {what}: {_some(columns)}"
    for suffix, modality in clinical.suffixes.items():
        count = sum(str(name).endswith(suffix) for name in clinical.table.columns)
        yield f"  {modality}: {count} columns that end with {suffix}"
    for reason, columns in findings.skipped.items():
        yield f"  skipped ({reason}): {_some([column or 'the first one' for column in columns])}"
    for reason in trial.reasons[:5]:
        yield f"  {reason}"
    for column, values in findings.studies.items():
        yield f"  {column!r} names {len(values)} studies: --where '{column}={values[0]}' takes one of them"
    for remark in draft.remarks:
        yield f"  note: {remark}"


def _some(columns: Sequence[str], most: int = 8) -> str:
    return ", ".join(columns[:most]) + (f" and {len(columns) - most} more" if len(columns) > most else "")


class _Names:
    """Unique task names from column names; columns of the patients table are never used."""

    def __init__(self) -> None:
        self._taken = set(RESERVED)

    def of(self, column: str) -> str:
        plain = name = identifier(column)
        number = 2
        while name in self._taken:
            name, number = f"{plain}_{number}", number + 1
        self._taken.add(name)
        return name


def _render(draft: Draft, summary: str, file: Path) -> str:
    from jinja2 import Environment, StrictUndefined

    if (more := len(draft.other_tasks) - MOST_OFFERED) > 0:
        draft.other_tasks = [*draft.other_tasks[:MOST_OFFERED], f"… and {more} more columns"]
    draft.remarks = [" ".join(remark.split()) for remark in draft.remarks]
    text = (Path(__file__).parent / "template.yaml").read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)  # noqa: S701
    template.globals["flow"] = flow
    return template.render(draft=draft, summary=summary, file=file.name)


def identifier(text: str) -> str:
    """Letters, digits and dashes of a name, starting with a letter."""
    plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in text).strip("_")
    return plain if plain[:1].isalpha() else f"x{plain}"


def _plain_stem(tables: Path) -> str:
    name = tables.resolve().name
    return name if tables.is_dir() else name.partition(".")[0]
