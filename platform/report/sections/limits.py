"""Failures and limits of the results."""

import pandas as pd

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.report.baseline_rows import baseline_limits
from equipoise.platform.report.blocks import Block, Heading, Notice, Section, Table, Text
from equipoise.platform.report.captions import few_cases
from equipoise.platform.report.cohort_drift import drift_sentences
from equipoise.platform.report.decision_remarks import decision_remarks
from equipoise.platform.report.entries import LimitsParams
from equipoise.platform.report.formatting import count, interval, label, listed, number, percent, plural
from equipoise.platform.report.metric_rows import external, internal
from equipoise.platform.report.run_files import FILES, RunFiles
from equipoise.platform.report.sections.balancing import weights_remark
from equipoise.platform.report.sections.branches import branch_remarks
from equipoise.platform.report.sections.training import best_epoch
from equipoise.platform.report.style import Download


def build(run: RunFiles, params: LimitsParams) -> Section:
    """Limits, then failed slides, then metrics that could not be computed."""
    blocks: list[Block] = [Notice("Limits of the results", limits(run))]
    blocks += slide_blocks(run, params.failures)
    blocks += _missing_metrics(run)
    run.missing(*FILES)
    if run.problems:
        items = [f"{name}: {why}" for name, why in sorted(run.problems.items())]
        blocks.append(Notice("Files of the run folder that could not be read", items, tone="bad"))
    return Section(
        "Failures and limits", "Failures, and conclusions that the results do not support.", blocks
    )


def limits(run: RunFiles, *, name_sites: bool = True) -> list[str]:
    """Limits of this run, the most serious first; each is computed from the run and says its number.

    Parameters
    ----------
    run
        The run folder.
    name_sites
        Whether a site may be named; not in a text that leaves with a model.
    """
    sentences = []
    if run.synthetic:
        sentences.append(
            "The data are synthetic, with planted signal. The results show that the software works; they say nothing "
            "about patients."
        )
    if run.leakage is not None and not run.leakage["ok"].all():
        failed = int((~run.leakage["ok"]).sum())
        sentences.append(
            f"The leakage audit failed ({failed} of {plural(len(run.leakage), 'check')}): the test results are not "
            "valid."
        )
    for table in run.table_batches:
        if spoiled := [task["task"] for task in table["tasks"] if task["spoiled"]]:
            sentences.append(
                f"{table['modality']} carries the batch it was prepared in, and the batch alone predicts "
                f"{' and '.join(spoiled)}: what a model of it learns may be the preparation of the table."
            )
    sentences += decision_remarks(run)
    sentences += run.convergence_warnings
    sentences += _unmoved_fits(run)
    if remark := weights_remark(run):
        sentences.append(remark)
    sentences += baseline_limits(run)
    sentences += branch_remarks(run)
    sentences += _few_cases(run)
    sentences += _lost_labels(run)
    sentences += _sites(run, name_sites)
    sentences += drift_sentences(run)
    sentences += _centres(run)
    if run.metric_rows and not any(row["role"] == "external" for row in run.metric_rows):
        sentences.append("No external cohort was tested: performance at another hospital is unknown.")
    if run.splits and len({f["repeat"] for f in run.splits}) == 1:
        sentences.append(
            "Patients were assigned to folds once. The intervals for these models cover the choice of test patients, "
            "and those for the procedure also cover training on other patients. Neither covers another training seed "
            "or another hospital."
        )
    sentences += _lost_slides(run)
    sentences.append(
        "Probabilities were not recalibrated. A threshold is valid for cohorts like those whose validation patients "
        "chose it."
    )
    return sentences


def _few_cases(run: RunFiles) -> list[str]:
    """Tasks that rest on few events or patients of a class, in the test folds or in an external cohort."""
    sentences = []
    for task in run.tasks:
        metric = PRIMARY.get(task.kind, "")
        row = internal(run, task.name, metric)
        rows = [("the test folds", row)] if row else []
        rows += [(str(r["cohort"]), r) for r in external(run, task.name, metric)]
        found = [f"{few} in {where}" for where, r in rows if (few := few_cases(r))]
        if found:
            sentences.append(
                f"{task.name} rests on {listed(found)}: intervals are wide, and with so few cases they are uncertain "
                "themselves."
            )
    return sentences


def _lost_labels(run: RunFiles) -> list[str]:
    """Tasks without a label in a cohort where others have some, and tasks with one class in an external cohort."""
    sentences = []
    for task_name in dict.fromkeys(str(account["task"]) for account in run.labels):
        accounts = [a for a in run.labels if a["task"] == task_name and a["patients"]]
        empty = [
            f"{a['cohort']} (0 of {plural(a['patients'], 'patient')})" for a in accounts if not a["usable"]
        ]
        if empty and len(empty) < len(accounts):
            which = "that cohort" if len(empty) == 1 else "these cohorts"
            sentences.append(
                f"{task_name} has no label in {listed(empty, 6)}: results of this task say nothing about {which}."
            )
    for task in run.tasks:
        if run.patients is None or task.kind not in ("binary", "survival"):
            continue
        column = f"{task.name}.event" if task.kind == "survival" else task.name
        if column not in run.patients:
            continue
        for cohort, part in run.patients.groupby("cohort", sort=True):
            known = pd.to_numeric(part[column], errors="coerce").dropna()
            if len(known) and not known.sum():
                what = "event" if task.kind == "survival" else "positive patient"
                sentences.append(
                    f"{task.name} has no {what} among the {plural(len(known), 'labelled patient')} of {cohort}: it "
                    "cannot be measured there."
                )
    return sentences


#: Relative change of the training loss below which a fit counts as unmoved.
_UNMOVED = 0.01


def _unmoved_fits(run: RunFiles) -> list[str]:
    """Folds whose training loss never fell, and folds that kept their first epoch."""
    first, still = [], []
    for fold, table in run.histories.items():
        columns = [c for c in table if str(c).startswith("train/")] or [c for c in table if c == "train_loss"]
        losses = table[columns].sum(axis=1, min_count=1).dropna()
        if len(table) < 3 or len(losses) < 2:  # solved exactly, or hardly trained
            continue
        start = float(losses.iloc[0])
        if float(losses.min()) > start - _UNMOVED * abs(start):
            still.append(fold)
        elif _kept_first(table):
            first.append(fold)
    total = plural(len(run.histories), "fold")
    sentences = []
    if still:
        sentences.append(
            f"The training loss did not fall by 1 % in {len(still)} of {total} ({listed(still)}): nothing was learned "
            "there."
        )
    if first:
        sentences.append(
            f"Training kept its first epoch in {len(first)} of {total} ({listed(first)}): no later one was better for "
            "the inner validation patients, so the model hardly left its initial weights."
        )
    return sentences


def _kept_first(table: pd.DataFrame) -> bool:
    if "monitor" not in table or table["monitor"].isna().all():
        return False
    return int(table["epoch"].loc[best_epoch(table, "monitor")]) == int(table["epoch"].min())


def _sites(run: RunFiles, named: bool) -> list[str]:
    if run.patients is None:
        return []
    develop = run.patients[run.patients["role"] == "develop"]
    if develop.empty:
        return []
    share = develop["site"].value_counts(normalize=True)
    if len(share) == 1:
        return [
            f"All {plural(len(develop), 'development patient')} come from one site: the model cannot learn about "
            "differences between sites."
        ]
    if share.iloc[0] > 0.4:
        which = f"One site, {share.index[0]}," if named else "One site"
        return [f"{which} contributes {percent(float(share.iloc[0]))} of the development patients."]
    return []


def _centres(run: RunFiles) -> list[str]:
    """Tasks whose features or embeddings are nearer by centre than by class."""
    sentences = []
    for what, table, meaning in (
        (
            "features of the encoder",
            run.feature_robustness,
            "a model can learn where patients come from instead",
        ),
        ("embeddings of patients", run.robustness, "the model may have learned where patients come from"),
    ):
        for row in [] if table is None else table.to_dict("records"):
            if pd.notna(row["high"]) and row["high"] < row["chance"]:
                sentences.append(
                    f"{row['task']}: {what} are nearer by {row['centre']} than by class (robustness index "
                    f"{number(row['value'], 2)}, {interval(row['low'], row['high'], 2)}; {number(row['chance'], 2)} at "
                    f"random): {meaning}."
                )
    return sentences


def _lost_slides(run: RunFiles) -> list[str]:
    if run.slides is None or run.used_slides is None or not len(run.slides):
        return []
    lost = len(run.slides) - len(run.used_slides)
    share = lost / len(run.slides)
    if share <= 0.05:
        return []
    return [
        f"{percent(share)} of the slides ({count(lost)} of {count(len(run.slides))}) could not be used; results may be "
        "biased if these slides have something in common."
    ]


def slide_blocks(run: RunFiles, most: int) -> list[Block]:
    """Slides that could not be used, and those that are used with a remark, ``most`` rows of each."""
    if run.slides is None:
        return []
    texts = run.slides["error"] if "error" in run.slides else pd.Series("", index=run.slides.index)
    slides = run.slides.assign(reason=texts.fillna("").astype(str))
    failed = slides[~slides["status"].isin(["ok", "listed"])]
    heading = Heading("Slides that could not be used")
    blocks: list[Block] = [heading, Text("None.")]
    if not failed.empty:
        blocks = [heading, _slide_rows(failed, "Reason", "failed-slides.csv", most)]
    remarked = slides[(slides["status"] == "ok") & (slides["reason"] != "")]
    if remarked.empty:
        return blocks
    more = Heading("Slides that are used with a remark")
    return [*blocks, more, _slide_rows(remarked, "Remark", "remarked-slides.csv", most)]


def _slide_rows(slides: pd.DataFrame, title: str, download: str, most: int) -> Table:
    """The first ``most`` slides with what is to be said about them, and all of them to download."""
    shown = slides[["slide", "patient", "cohort", "status", "reason"]]
    more = len(shown) - most
    return Table(
        ["Slide", "Patient", "Cohort", "Status", title],
        shown.head(most).astype(str).to_numpy().tolist(),
        caption=f"{plural(more, 'more row')} in manifest/slides.parquet." if more > 0 else "",
        download=Download(download, shown.head(1000)),
    )


def _missing_metrics(run: RunFiles) -> list[Block]:
    rows = [r for r in run.metric_rows if r["predictor"] == "model" and r["fold"] == "all"]
    rows = [r for r in rows if pd.isna(r["value"])]
    if not rows:
        return []
    lines = [
        [r["task"], label(r["metric"]), r["role"], f"{r['cohort']} / {r['site']}", r["note"]]
        for r in rows[:200]
    ]
    caption = f"{plural(len(rows), 'metric')} could not be computed; each is named with its reason."
    return [
        Heading("Metrics that are not estimable"),
        Table(["Task", "Metric", "Role", "Cohort / site", "Reason"], lines, caption, folded=True),
    ]
