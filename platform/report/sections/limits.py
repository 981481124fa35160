"""Failures and limits of the results."""

import pandas as pd

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.report.baseline_rows import baseline_limits
from equipoise.platform.report.blocks import Block, Heading, Notice, Section, Table, Text
from equipoise.platform.report.captions import FEW_CASES
from equipoise.platform.report.entries import LimitsParams
from equipoise.platform.report.formatting import count, label, percent, plural
from equipoise.platform.report.metric_rows import internal
from equipoise.platform.report.run_files import FILES, RunFiles
from equipoise.platform.report.sections.branches import branch_remarks
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


def limits(run: RunFiles) -> list[str]:
    """Limits of this run, the most serious first."""
    sentences = []
    if run.synthetic:
        sentences.append(
            "The data are synthetic, with planted signal. Results show that the software works; they say "
            "nothing "
            "about patients."
        )
    if run.leakage is not None and not run.leakage["ok"].all():
        sentences.append("The leakage audit failed: the test results are not valid.")
    for table in run.table_batches:
        if spoiled := [task["task"] for task in table["tasks"] if task["spoiled"]]:
            sentences.append(
                f"{table['modality']} carries the batch it was prepared in, and the batch alone predicts "
                f"{' and '.join(spoiled)}: what a model of it learns may be the preparation of the table."
            )
    sentences += run.convergence_warnings
    sentences += baseline_limits(run)
    sentences += branch_remarks(run)
    sentences += _small(run)
    sentences += _sites(run)
    if run.metric_rows and not any(row["role"] == "external" for row in run.metric_rows):
        sentences.append("No external cohort was tested: performance at another hospital is unknown.")
    if run.splits and len({f["repeat"] for f in run.splits}) == 1:
        sentences.append(
            "Patients were assigned to folds once. Intervals for these models cover the choice of test patients; those "
            "for the procedure also training on other patients. Neither covers another training seed or another "
            "hospital."
        )
    if run.slides is not None and run.used_slides is not None and len(run.slides):
        lost = 1 - len(run.used_slides) / len(run.slides)
        if lost > 0.05:
            sentences.append(
                f"{percent(lost)} of the slides could not be used; results may be biased if these slides have "
                "something in common."
            )
    sentences.append(
        "Probabilities were not recalibrated. A threshold belongs to the cohorts on whose validation "
        "patients it "
        "was chosen."
    )
    return sentences


def _small(run: RunFiles) -> list[str]:
    sentences = []
    for task in run.tasks:
        row = internal(run, task.name, PRIMARY.get(task.kind, ""))
        if row is None or pd.isna(row["n_pos"]) or row["n_pos"] >= FEW_CASES:
            continue
        what = "events" if task.kind == "survival" else "positive patients"
        sentences.append(
            f"{task.name} has {count(row['n_pos'])} {what} in the test folds: intervals are wide, and with "
            "so few cases uncertain themselves."
        )
    return sentences


def _sites(run: RunFiles) -> list[str]:
    if run.patients is None:
        return []
    develop = run.patients[run.patients["role"] == "develop"]
    if develop.empty:
        return []
    share = develop["site"].value_counts(normalize=True)
    if len(share) == 1:
        return [
            "All development patients come from one site: the model cannot learn about differences between sites."
        ]
    if share.iloc[0] > 0.4:
        return [f"One site, {share.index[0]}, contributes {percent(float(share.iloc[0]))} of the patients."]
    return []


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
