"""Federation: what training across sites gives each of them, what it costs, and what left the sites."""

from typing import Any

import pandas as pd

from equipoise.platform.evaluation.measures import CHANCE
from equipoise.platform.report.blocks import (
    Block,
    Cell,
    Fact,
    Facts,
    Figures,
    Heading,
    Notice,
    Section,
    Table,
    Text,
)
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.federation_files import FederationFiles
from equipoise.platform.report.figures.federation import METHODS, round_curves, site_forest
from equipoise.platform.report.formatting import count, estimate, label, number, plural
from equipoise.platform.report.run_files import RunFiles

PLANS = {
    "folds": "Folds: every site trains and is tested on other patients of its own",
    "leave_one_site_out": "One site left out: tested on a site that took no part",
    "leave_one_cohort_out": "One cohort left out: tested on a cohort that took no part",
}
SCOPES = {
    "pooled": "all test patients",
    "mean": "mean of sites",
    "weighted": "mean by patients",
    "worst": "worst site",
}


def build(run: RunFiles, params: SectionParams) -> Section | None:
    """None where the study asks for no federation and there is none."""
    asked = run.study.get("federation") is not None
    if not asked and not (run.folder / "federated").exists():
        return None
    files = FederationFiles(run.folder)
    blocks: list[Block] = [*files.missing]
    if files.setting:
        blocks += [_facts(files), *_clients(files)]
    if files.sites is not None:
        for plan in dict.fromkeys(files.sites["plan"]):
            blocks += _plan(run, files.sites[files.sites["plan"] == plan], str(plan))
    if files.rounds is not None and (figure := round_curves(files.rounds, [task.name for task in run.tasks])):
        blocks.append(Figures([figure]))
    blocks += _costs(files.setting)
    blocks += _traffic(files)
    blocks.append(_privacy(files.setting))
    return Section("Federation", "The same model trained across sites that keep their patients.", blocks)


def _facts(files: FederationFiles) -> Facts:
    setting = files.setting
    params = setting["federation"]
    sent = 0 if files.traffic is None else int(files.traffic["bytes"].sum())
    return Facts(
        [
            Fact("Clients", count(len(setting["clients"])), f"sites by {params['sites']['scheme']}"),
            Fact("Strategy", str(params["strategy"]), f"rule {params['rule']}"),
            Fact("Rounds", count(params["rounds"]), f"{setting['backend']} backend"),
            Fact("Parameters", count(setting["parameters"]), "in one update"),
            Fact("Left the sites", size(sent), "all federations together"),
        ]
    )


def _clients(files: FederationFiles) -> list[Block]:
    rows: list[list[str | Cell]] = []
    for client in files.setting["clients"]:
        merged = ", ".join(client["sites"]) if client["sites"] != [client["name"]] else ""
        rows.append([client["name"], count(client["patients"]), merged, "; ".join(client["flags"])])
    rows += [
        [name, count(n), "", "external: took no part"]
        for name, n in (files.setting.get("external") or {}).items()
    ]
    table = Table(
        ["Client", "Patients", "Merged from", "Remarks"], rows, numeric=frozenset([1]), folded=len(rows) > 12
    )
    notes = [str(note) for note in files.setting.get("notes", ())]
    benched = files.setting.get("benched") or []
    found: list[Block] = [table]
    if notes:
        found.append(Notice("How patients were dealt to clients", notes))
    if benched:
        found.append(
            Notice("Left out for good after repeated failures", [str(name) for name in benched], tone="bad")
        )
    return found


def _plan(run: RunFiles, table: pd.DataFrame, plan: str) -> list[Block]:
    blocks: list[Block] = [Heading(PLANS.get(plan, plan))]
    for task in run.tasks:
        own = table[table["task"] == task.name]
        if own.empty:
            continue
        metric = str(own["metric"].iloc[0])
        chance = CHANCE.get(metric)
        clients = own[own["scope"] == "client"]
        if figure := site_forest(clients, task.name, metric, chance, run.confidence):
            blocks.append(Figures([figure]))
        blocks.append(_overview(own, task.name, metric))
        blocks.append(_by_site(clients, task.name, metric))
    return blocks


def _overview(rows: pd.DataFrame, task: str, metric: str) -> Table:
    """Pooled, mean, weighted and worst, a column per method."""
    lines: list[list[str | Cell]] = []
    for scope, name in SCOPES.items():
        cells: list[str | Cell] = [name]
        for method in METHODS:
            found = rows[(rows["scope"] == scope) & (rows["method"] == method)].to_dict("records")
            cells.append(_cell(found[0], scope) if found else Cell("–", tone="muted"))
        lines.append(cells)
    return Table(
        ["", *METHODS],
        lines,
        f"{label(metric)} of {task}: federated beside its baselines",
        numeric=frozenset(range(1, len(METHODS) + 1)),
        footnotes=[
            "Local models have no value over all test patients: scores of different models do not compare.",
        ],
    )


def _cell(row: dict[str, Any], scope: str) -> Cell:
    note = str(row["client"]) if scope == "worst" else str(row["note"])
    return Cell(estimate(row), tone="muted" if pd.isna(row["value"]) else "", note=note)


def _by_site(clients: pd.DataFrame, task: str, metric: str) -> Table:
    lines: list[list[str | Cell]] = []
    for client, rows in clients.groupby("client", sort=True):
        by_method = {row["method"]: row for row in rows.to_dict("records")}
        first = next(iter(by_method.values()))
        cells = [
            _cell(by_method[m], "client") if m in by_method else Cell("–", tone="muted") for m in METHODS
        ]
        lines.append([str(client), count(first["n"]), *cells])
    return Table(
        ["Site", "Test patients", *METHODS],
        lines,
        f"{label(metric)} of {task} by site as a table",
        numeric=frozenset(range(1, len(METHODS) + 2)),
        folded=True,
    )


def _costs(setting: dict[str, Any]) -> list[Block]:
    """What each rule makes of honest updates."""
    costs = setting.get("clean_costs") or []
    if not costs:
        return []
    chosen = setting["federation"]["rule"]
    lines: list[list[str | Cell]] = []
    for row in costs:
        name = Cell(row["rule"], note="used here" if row["rule"] == chosen else "")
        if row["note"]:
            lines.append([name, Cell("–", tone="muted", note=row["note"]), "–", "–"])
        else:
            lines.append([name, *(number(_or_nan(row[key])) for key in ("distance", "cosine", "length"))])
    return [
        Heading("What aggregation rules cost without an attack"),
        Table(
            ["Rule", "Distance from the mean", "Cosine with it", "Length beside it"],
            lines,
            "One round of honest updates from the final weights, combined by every rule. A distance of 0 is the "
            "weighted mean itself, 1 is as far from it as doing nothing",
            numeric=frozenset([1, 2, 3]),
        ),
    ]


def _traffic(files: FederationFiles) -> list[Block]:
    if files.traffic is None or files.traffic.empty:
        return []
    sums = files.traffic.groupby("client", sort=True)[
        ["bytes", "accepted", "quarantined", "failed", "late"]
    ].sum()
    lines: list[list[str | Cell]] = [
        [str(client), size(int(row["bytes"])), *(count(row[verdict]) for verdict in sums.columns[1:])]
        for client, row in sums.iterrows()
    ]
    bad = int(sums["quarantined"].sum())
    found: list[Block] = [
        Table(
            ["Client", "Sent", "Accepted", "Quarantined", "Failed", "Late"],
            lines,
            "What left each site, from the ledger (names and hashes of all arrays: rounds/ledger.jsonl)",
            numeric=frozenset(range(1, 6)),
            folded=len(lines) > 12,
        )
    ]
    if bad:
        found.append(
            Text(
                f"{plural(bad, 'update')} turned away by the gate; the reasons stand in the ledger.",
                tone="warn",
            )
        )
    return found


def _privacy(setting: dict[str, Any]) -> Notice:
    """What is protected, and what is not."""
    params = setting.get("federation") or {}
    privacy = params.get("privacy") or {}
    lines = [
        "Only differences of weights, counts of patients and mean losses of at least "
        f"{params.get('min_n', '–')} patients left a site; no row of a table and no tile did.",
        "This is a simulation on one machine or cluster: who can read its memory can read all patients.",
    ]
    on = {name: values for name, values in privacy.items() if values}
    if not on:
        lines.append(
            "No differential privacy and no secure aggregation: updates can tell about single patients. "
            "Sites that need more write federation: {privacy: …}."
        )
    if level := on.get("client_level"):
        clients = len(setting.get("clients", ()))
        lines.append(
            f"Differential privacy of whole sites: clip {level['clip']:g}, noise {level['noise']:g}, delta "
            f"{level['delta']:g}. With {clients} sites such an epsilon says little about a single hospital."
        )
    if level := on.get("record_level"):
        lines.append(
            f"Differential privacy of patients within each site: clip {level['clip']:g}, noise {level['noise']:g}, "
            f"delta {level['delta']:g}; every site counts the steps that it took."
        )
    if on.get("secure_aggregation"):
        lines.append("Secure aggregation: the server saw masked updates and their sum, no single one.")
    for name, value in (setting.get("epsilon") or {}).items():
        lines.append(f"Spent: epsilon {number(value)} ({name}).")
    return Notice("Privacy", lines, tone="warn" if not on else "")


def size(value: int) -> str:
    """``3.2 MB``."""
    amount = float(value)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError(value)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
