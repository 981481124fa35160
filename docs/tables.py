"""Tables of measured figures in pages, written from the results of the benchmarks; a test holds them up to date.

A page says where a table stands by a pair of comments, ``<!-- table: NAME -->`` and ``<!-- end of table -->``; the
function of that name in :data:`TABLES` makes it from ``benchmarks/results``. Without the result a page says which
command measures it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent
RESULTS = PAGES.parent / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """A page with its tables written again."""
    return PLACE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", page)


def pages() -> list[Path]:
    """Pages that have tables."""
    return [page for page in sorted(PAGES.glob("*.md")) if PLACE.search(page.read_text(encoding="utf-8"))]


def result(name: str) -> Mapping[str, Any] | None:
    """What a benchmark wrote; None if it has not run."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def not_measured(name: str) -> str:
    """The line in place of a table that nobody measured."""
    return f"Not measured yet: `python -m benchmarks.{name}`."


def markdown(headers: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def share(value: float | None) -> str:
    """``.875``."""
    return "–" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    """``+.036``, ``−.010``."""
    return ("−" if value < 0 else "+") + share(abs(value))


def interval(low: float, high: float, write: Callable[[float], str] = share) -> str:
    """``[.851, .896]``."""
    return f"[{write(low)}, {write(high)}]"


def tcga_survival() -> str:
    """Every row of both cohorts, beside clinical."""
    found = result("tcga_survival")
    if found is None:
        return not_measured("tcga_survival")
    rows = []
    for cohort, table in found["cohorts"].items():
        for name, row in table.items():
            harrell, uno, apart = row["harrell"], row["uno"], row["minus_clinical"]
            of_clinical = name == "clinical"
            rows.append(
                [
                    cohort,
                    name,
                    f"{share(harrell['c'])} ± {share(harrell['fold_sd'])}",
                    interval(harrell["low"], harrell["high"]),
                    interval(harrell["low_procedure"], harrell["high_procedure"]),
                    share(uno["c"]),
                    "" if of_clinical else signed(apart["difference"]),
                    "" if of_clinical else interval(apart["low"], apart["high"], signed),
                ]
            )
    headers = [
        "cohort",
        "model",
        "C ± fold sd",
        "these models",
        "the procedure",
        "Uno's C",
        "− clinical",
        "95 %",
    ]
    return markdown(headers, rows)


def difference_of(row: Mapping[str, Any], key: str) -> list[str]:
    """A paired difference and its interval; empty for the row that the others are compared with."""
    apart = row.get(key)
    return [signed(apart["difference"]), interval(apart["low"], apart["high"], signed)] if apart else ["", ""]


def mixup() -> str:
    """Every way of training an adapter, on pseudo-bulk of real cells."""
    found = result("mixup")
    if found is None:
        return not_measured("mixup")
    rows = []
    for name, row in found["methods"].items():
        scores = [share(row[key]) for key in ("r_100", "r_10", "r_1", "type_r", "tv_100")]
        rows.append([name, *scores, *difference_of(row, "against_none")])
    headers = ["trained on", "r, 100 cells", "10 cells", "1 cell", "r by type", "TV", "− none", "95 %"]
    return markdown(headers, rows)


def mixup_survival() -> str:
    """What adapters do to the C-index of built-in cohorts."""
    found = result("mixup_survival")
    if found is None:
        return not_measured("mixup_survival")
    rows = []
    for name, row in found["rows"].items():
        scores = [share(row["c"]), share(row.get("r_100"))]
        rows.append([name, *scores, *difference_of(row, "against_encoder_alone")])
    return markdown(["SYNTHETIC", "C", "r, 100 cells", "C − encoder alone", "95 %"], rows)


def gptomic_synthetic() -> str:
    """The fused model, its branches, and models of one modality on the built-in cohort."""
    found = result("gptomic_synthetic")
    if found is None:
        return not_measured("gptomic_synthetic")
    rows = []
    for name, row in found["runs"].items():
        apart = found["differences"].get(f"fused - {name}")
        led = (
            [signed(apart["difference"]), interval(apart["low"], apart["high"], signed)]
            if apart
            else ["", ""]
        )
        rows.append([name, share(row["c"]), interval(row["low"], row["high"]), *led])
    for kind, what in (("branches", "branch of the fused model: "), ("baselines", "linear: ")):
        for name, row in found[kind].items():
            led = [signed(row["lead"]), interval(row["low"], row["high"], signed)]
            rows.append([f"{what}{name}", share(row["c"]), "", *led])
    return markdown(["SYNTHETIC", "C", "95 %", "fused − this", "95 %"], rows)


def gptomic_search() -> str:
    """Fusions x modulations: mean C of inner folds."""
    found = result("gptomic_synthetic")
    if found is None or "search" not in found:
        return not_measured("gptomic_synthetic")
    values: dict[str, dict[str, float]] = {}
    for row in found["search"]["trials"]:
        values.setdefault(row["modulation"], {})[row["fusion"]] = row["c"]
    fusions = list(dict.fromkeys(name for row in values.values() for name in row))
    rows = [[name, *(share(row.get(fusion)) for fusion in fusions)] for name, row in values.items()]
    return markdown(["SYNTHETIC, inner validation", *fusions], rows)


def paper() -> str:
    """The rows of the paper's three tables, and what was measured in their place."""
    real, branches = result("tcga_survival"), result("tcga_modulation")
    if real is None or branches is None:
        return not_measured("tcga_survival" if real is None else "tcga_modulation")

    def row(cohort: str, name: str) -> str:
        return share(real["cohorts"][cohort][name]["harrell"]["c"])

    def network(name: str) -> str:
        return share(branches["methods"].get(name, {}).get("c"))

    image, whole = "image: a published risk, not a network", "image risk, components of RNA in place of scGPT"
    rows = [
        ["1, GBMLGG", "SCNN / GSCNN", ".754 / .781", "–", "needs the regions of Pathomic Fusion"],
        [
            "1, GBMLGG",
            "histology CNN",
            ".792",
            row("GBMLGG", "published image risk"),
            "MCAT's attention over tiles",
        ],
        ["1, GBMLGG", "T2T-ViT", ".803", "–", "needs the regions of Pathomic Fusion"],
        [
            "1, GBMLGG",
            "genomic SNN",
            ".808",
            row("GBMLGG", "snn, omics"),
            "more genes, as z-scores per study",
        ],
        [
            "1, GBMLGG",
            "Pathomic Fusion, CNN / T2T-ViT + SNN",
            ".820 / .826",
            network("kronecker, none"),
            image,
        ],
        ["1, GBMLGG", "PathOmics", ".833", "–", "another method"],
        ["1, GBMLGG", "Path-GPTOmic", ".848", network("gradmod"), whole],
        ["2, KIRC", "CNN / T2T-ViT", ".671 / .683", "–", "no image of these patients"],
        ["2, KIRC", "genomic SNN", ".684", row("KIRC", "snn, omics"), "more genes, as z-scores"],
        ["2, KIRC", "fusions, Path-GPTOmic", ".719 to .754", "–", "no image of these patients"],
        ["3, GBMLGG", "SNN, concatenation", ".826", network("none"), image],
        [
            "3, GBMLGG",
            "scGPT, no smoothing: concatenation / GradMod",
            ".831 / .840",
            "–",
            "needs scGPT's weights and counts",
        ],
        [
            "3, GBMLGG",
            "scGPT, smoothing: concatenation / Kronecker",
            ".838 / .840",
            "–",
            "needs scGPT's weights and counts",
        ],
        ["beside, GBMLGG", "age, sex, histology", "–", row("GBMLGG", "clinical"), "no network, no gene"],
        ["beside, GBMLGG", "ridge, RNA + these", "–", row("GBMLGG", "ridge, rna + clinical"), "no image"],
        [
            "beside, GBMLGG",
            "late ridge, image + omics + these",
            "–",
            row("GBMLGG", "late ridge, image + omics + clinical"),
            "stacked on the image risk",
        ],
        ["beside, KIRC", "age, sex, stage, M, N", "–", row("KIRC", "clinical"), "no network, no gene"],
        [
            "beside, KIRC",
            "RNA + these, chosen inside training",
            "–",
            row("KIRC", "chosen, rna + clinical"),
            "no image",
        ],
    ]
    return markdown(["table", "row", "published", "here", "what differs"], rows)


def tcga_modulation() -> str:
    """Modulations beside the same model without one."""
    found = result("tcga_modulation")
    if found is None:
        return not_measured("tcga_modulation")
    rows = []
    for name, row in found["methods"].items():
        apart = row.get("minus_none")
        least = [
            v for k, v in row["branches"].items() if k.startswith("coefficient/") and k.endswith("least")
        ]
        rows.append(
            [
                name,
                f"{share(row['c'])} ± {share(row['seed_sd'])}",
                share(row["within_lgg_c"]),
                *(["", "", ""] if apart is None else [*difference_of(row, "minus_none"), apart["verdict"]]),
                share(min(least)) if least else "–",
            ]
        )
    headers = ["GBMLGG", "C ± sd of seeds", "inside LGG", "− none", "95 %", "", "smallest coefficient"]
    return markdown(headers, rows)


def tcga_cohorts() -> str:
    """What omics add to covariates in six cohorts."""
    found = result("tcga_cohorts")
    if found is None:
        return not_measured("tcga_cohorts")
    rows = [
        [
            name,
            f"{row['patients']} / {row['events']}",
            *(share(row[key]) for key in ("clinical", "rna", "omics", "omics_clinical")),
            *difference_of(row, "gain"),
            *difference_of(row, "gain_of_clinical"),
        ]
        for name, row in found["cohorts"].items()
    ]
    means = [*difference_of(found, "mean_gain"), *difference_of(found, "mean_gain_of_clinical")]
    rows.append(["mean", "", "", "", "", "", *means])
    headers = ["cohort", "patients / events", "clinical", "RNA", "omics", "omics + clinical"]
    return markdown([*headers, "gain of omics", "95 %", "gain of clinical", "95 %"], rows)


def tcga_weights() -> str:
    """Best weight of the image risk against omics, per cohort and subgroup."""
    found = result("tcga_weights")
    if found is None:
        return not_measured("tcga_weights")
    rows = []
    for name, cohort in found["cohorts"].items():
        for group, row in cohort.get("groups", {}).items():
            gain = difference_of(cohort, "gain") if group == "all" else ["", ""]
            rows.append(
                [
                    name,
                    cohort["source"],
                    group,
                    f"{row['patients']} / {row['events']}",
                    f"{row['best']:.2f}",
                    f"[{row['low']:.2f}, {row['high']:.2f}]",
                    f"{row['flat'][0]:.2f} to {row['flat'][1]:.2f}",
                    *(share(row[key]) for key in ("c_omics", "c_image", "c_best")),
                    *gain,
                ]
            )
    headers = ["cohort", "risk against omics", "patients", "n / events", "best weight", "95 %", "within .005"]
    return markdown([*headers, "C omics", "C risk", "C best", "gain, chosen on other folds", "95 %"], rows)


def bounds(row: Mapping[str, Any]) -> list[str]:
    """Value and interval; no interval where there is none."""
    low, high = row["low"], row["high"]
    return [share(row["value"]), "–" if low is None else interval(low, high)]


def modaltune_tcga() -> str:
    """ModalTune without slides beside trivial baselines and ridges: survival of each cancer."""
    found = result("modaltune_tcga")
    if found is None:
        return not_measured("modaltune_tcga")
    rows = []
    for cancer, table in found["cancers"].items():
        rows += [[cancer, name, *bounds(row)] for name, row in table["survival"].items()]
        rows[-1] += [*map(signed_bounds, (table["minus_ridge"], table["minus_age_class"]))]
    headers = ["cancer", "survival, C-index", "C", "95 %", "− ridge, 95 %", "− age + class, 95 %"]
    return markdown(headers, [row + [""] * (len(headers) - len(row)) for row in rows])


def signed_bounds(row: Mapping[str, Any]) -> str:
    """A difference with its interval in one cell."""
    return f"{signed(row['value'])} {interval(row['low'], row['high'], signed)}"


def modaltune_presence() -> str:
    """Cases without RNA: what presence alone tells, and what comes through the missing token."""
    found = result("modaltune_tcga")
    if found is None:
        return not_measured("modaltune_tcga")
    rows = []
    for cancer, row in found["presence"].items():
        through = found["without_rna"].get(cancer, {})
        shares = ", ".join(f"{name} {share(value)}" for name, value in row["share_with_rna"].items())
        cells = [
            share(through[key]["without_rna_ba"]["value"]) if through else "–"
            for key in ("trained with RNA only", "trained on all cases")
        ]
        cases = str(through["cases"]) if through else "–"
        alone = [share(row[key]["value"]) for key in ("training_ba", "test_ba")]
        rows.append([cancer, shares, *alone, cases, share(row["without_rna_ba"]), *cells])
    headers = [
        "cancer",
        "share with RNA, training",
        "presence alone: training BA",
        "test BA",
        "test cases without",
    ]
    return markdown([*headers, "presence alone: their BA", "never saw one", "trained on all"], rows)


def modaltune_pan() -> str:
    """All cancers in one model: BRCA's accuracy, means over cancers, and what was won back."""
    found = result("modaltune_tcga")
    if found is None:
        return not_measured("modaltune_tcga")
    rows = []
    for name, row in found["pan_cancer"]["arms"].items():
        cells = [name, share(row["ba"]["BRCA"]["value"]), share(row["mean_ba"]["value"])]
        cells.append(share(row["mean_c"]["value"]))
        for key in ("lost_brca_ba", "lost_ba", "lost_c"):
            cells.append(signed_bounds(row[key]) if key in row else "")
        rows.append(cells)
    headers = ["RNA alone, three seeds", "BRCA, BA", "mean BA", "mean C", "BRCA BA − per cancer, 95 %"]
    return markdown([*headers, "mean BA − per cancer, 95 %", "mean C − per cancer, 95 %"], rows)


def masked_gene() -> str:
    """What the masked-gene encoder learns of real cells."""
    found = result("masked_gene")
    if found is None:
        return not_measured("masked_gene")
    errors = [f"{found['loss']:.3f}", share(found["explained"]), share(found["types"])]
    linear = ["", share(found["factor_explained"]), share(found["types_of_components"])]
    mean = [f"{found['loss_of_mean']:.3f}", share(0.0), ""]
    rows = [["masked_gene", *errors], ["factor analysis; components", *linear], ["mean of the gene", *mean]]
    return markdown(["", "squared error of hidden genes", "explained", "balanced accuracy of types"], rows)


def cox() -> str:
    """CPU time of Cox's likelihood and its gradient, written in several ways."""
    found = result("cox")
    if found is None:
        return not_measured("cox")
    ms = found["ms"]
    ways = {
        "dense": "n x n masks over broadcast scores",
        "loop": "a mask of risk sets filled by two Python loops",
        "pure_python": "loops over events and patients",
    }
    rows = [["this product, slowest setting", f"{found['ms_n5000']:.1f}", ""]]
    rows += [[what, f"{ms[name]:,.0f}", f"{found[f'vs_{name}']:,.0f}"] for name, what in ways.items()]
    if found["vs_torchsurv"] is not None:
        rows.append([f"torchsurv {found['torchsurv']}", "", f"{found['vs_torchsurv']:.1f}"])
    return markdown(["forward and backward, 5,000 patients", "CPU ms", "times as long"], rows)


def risk_sets() -> str:
    """C-indices with risk sets of the batch, of all patients by memory, and in one full batch."""
    found = result("risk_sets")
    if found is None:
        return not_measured("risk_sets")
    names = {
        "batch_8": "batch of 8",
        "memory_8": "memory, batches of 8",
        "batch": "batch of 32",
        "batch_stratified": "batch of 32, stratified",
        "memory": "memory, batches of 32",
        "memory_stratified": "memory, batches of 32, stratified",
        "full": "all patients in one step",
    }
    against = {
        "memory_8": "batch_8",
        "batch_stratified": "batch",
        "memory": "batch",
        "memory_stratified": "memory",
        "full": "batch",
    }
    rows = []
    for cohort, table in found["cohorts"].items():
        for name, what in names.items():
            other = against.get(name)
            apart = table["differences"][f"{name} - {other}"] if other else None
            cells = [signed(apart["difference"]), interval(*apart["interval"], signed)] if apart else ["", ""]
            row = table["arms"][name]
            rows.append([cohort, what, share(row["c"]), *cells, f"− {names[other]}" if other else ""])
    return markdown(["cohort", "compared with", "C", "difference", "95 %", "to"], rows)


_PANCANCER = {
    "modaltune": "ModalTune",
    "modaltune-direct": "ModalTune, direct heads",
    "modaltune-text": "ModalTune, text alone, as published",
    "gptomic": "Path-GPTOmic",
    "concat": "concatenation",
    "rna": "RNA (and age, sex)",
    "image": "slides alone",
}
#: Task → its main metric, and the balanced accuracy of classes.
_OF_TASK = {"subtype": "auroc", "MSI": "auroc", "OS": "c_index"}


def _with_interval(row: Mapping[str, Any]) -> str:
    """``.842 [.796, .880]``."""
    if row["low"] is None:
        return share(row["value"])
    return f"{share(row['value'])} {interval(row['low'], row['high'])}"


def pancancer() -> str:
    """Models of the built-in cohorts of five cancers on the same folds, and their distance from ModalTune."""
    found = result("pancancer")
    if found is None:
        return not_measured("pancancer")
    apart = {(d["run"], d["task"]): d for d in found["differences"] if d["role"] == "test"}
    rows = []
    for name, what in _PANCANCER.items():
        run = found["runs"][name]
        cells = []
        for task, metric in _OF_TASK.items():
            other = apart.get((name, task))
            cells.append(share(run["test"][task][metric]["value"]))
            cells.append(
                ""
                if other is None
                else f"{signed(other['difference'])} {interval(other['low'], other['high'], signed)}"
            )
        rows.append([what, f"{run['parameters']:,}", *cells])
    for name in ("elastic_net, tables", "elastic_net, mean tile"):
        of = found["baselines"]["test"][name]
        cells = [cell for task in _OF_TASK for cell in (share(of[task]), "")]
        rows.append([{"elastic_net, tables": "ridge of RNA"}.get(name, "ridge of the mean tile"), "", *cells])
    apart_from = "− ModalTune [95 %]"
    headers = [
        "",
        "trained",
        "subtype, AUROC",
        apart_from,
        "MSI, AUROC",
        apart_from,
        "survival, C",
        apart_from,
    ]
    return markdown(headers, rows)


def pancancer_held_out() -> str:
    """The cancer that training has not seen: models as they are, and probes on their embeddings."""
    found = result("pancancer")
    if found is None:
        return not_measured("pancancer")

    def cells(of: Mapping[str, Any]) -> list[str]:
        subtype, msi, survival = (of.get(task, {}) for task in _OF_TASK)
        nothing = {"value": None, "low": None}
        chosen = [
            subtype.get("auroc"),
            subtype.get("balanced_accuracy"),
            msi.get("auroc"),
            survival.get("c_index"),
        ]
        return [_with_interval(row or nothing) for row in chosen]

    rows = [
        [what, how, *cells(found["runs"][name]["transfer"][how])]
        for name, what in _PANCANCER.items()
        for how in ("zero-shot", "probe")
    ]
    trained_here = {
        "elastic_net, tables": "ridge of RNA",
        "elastic_net, mean tile": "ridge of the mean tile",
        "presence of modalities": "ridge of which modalities there are",
        "constant class": "constant class",
    }
    transfer = found["runs"]["modaltune"]["transfer"]
    rows += [
        [what, "" if name == "constant class" else "fitted there", *cells(transfer[name])]
        for name, what in trained_here.items()
        if name in transfer
    ]
    return markdown(
        ["", "", "subtype, AUROC", "subtype, balanced accuracy", "MSI, AUROC", "survival, C"], rows
    )


def pancancer_robustness() -> str:
    """Robustness index of the embeddings across cancers and across sites, beside that of random neighbours."""
    found = result("pancancer")
    if found is None:
        return not_measured("pancancer")
    rows = []
    for name, what in _PANCANCER.items():
        of = found["runs"][name]["robustness"]
        cells = [
            _with_interval(of[f"{task}, {centre}"])
            for task in ("subtype", "MSI")
            for centre in ("cohort", "site")
        ]
        rows.append([what, *cells])
    of = found["runs"]["modaltune"]["robustness"]
    chance = [
        share(of[f"{task}, {centre}"]["chance"])
        for task in ("subtype", "MSI")
        for centre in ("cohort", "site")
    ]
    rows.append(["neighbours at random", *chance])
    return markdown(["", "subtype, cancers", "subtype, sites", "MSI, cancers", "MSI, sites"], rows)


#: Name in a page → its table.
def prediction() -> str:
    """Coverage of every task in development and on the external cohort, and the flags of drift."""
    found = result("prediction")
    if found is None:
        return not_measured("prediction")
    rows = [
        [
            name,
            f"{share(task['coverage'])} {interval(task['low'], task['high'])}",
            interval(task["expected_low"], task["expected_high"]),
            share(task["external_coverage"]),
        ]
        for name, task in found["tasks"].items()
    ]
    table = markdown(["task", "test folds, 95 % interval", "expected in 95 % of studies", "external"], rows)
    raised = {True: "raised", False: "not raised"}
    return (
        f"{table}\n\nThe drift flag is {raised[found['drift_flag']]} for the external cohort (features or colour of "
        f"{found['slides_flagged']:.0%} of its slides are flagged) and {raised[found['drift_flag_same_stain']]} for "
        f"the test folds of the same stain ({found['slides_flagged_same_stain']:.1%})."
    )


def chaos() -> str:
    """Every job under kills, and what was missing or different at its end."""
    found = result("chaos")
    if found is None:
        return not_measured("chaos")
    keys = ("kills", "workers", "nodes", "results", "lost", "unequal", "reruns")
    rows = [[f"`{name}`", *(str(row[key]) for key in keys)] for name, row in found["rows"].items()]
    sums = [str(sum(row[key] for row in found["rows"].values())) for key in keys]
    headers = ["job", "kills", "of workers", "of nodes", "results compared", "lost", "unequal", "run again"]
    return markdown(headers, [*rows, ["all", *sums]])


TABLES: dict[str, Callable[[], str]] = {
    "chaos": chaos,
    "paper": paper,
    "tcga_modulation": tcga_modulation,
    "tcga_cohorts": tcga_cohorts,
    "tcga_weights": tcga_weights,
    "tcga_survival": tcga_survival,
    "modaltune_tcga": modaltune_tcga,
    "modaltune_presence": modaltune_presence,
    "modaltune_pan": modaltune_pan,
    "cox": cox,
    "risk_sets": risk_sets,
    "mixup": mixup,
    "mixup_survival": mixup_survival,
    "masked_gene": masked_gene,
    "gptomic_synthetic": gptomic_synthetic,
    "gptomic_search": gptomic_search,
    "pancancer": pancancer,
    "pancancer_held_out": pancancer_held_out,
    "pancancer_robustness": pancancer_robustness,
    "prediction": prediction,
}
