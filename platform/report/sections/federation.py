"""Federation: results of each site, costs of server aggregations, traffic and privacy."""

import re
from typing import Any

import pandas as pd

from equipoise.platform.evaluation.metric_definitions import CHANCE_LEVEL
from equipoise.platform.report.blocks import (
    Block,
    Cell,
    Figures,
    Heading,
    KeyNumber,
    KeyNumbers,
    Notice,
    Section,
    Table,
    Text,
)
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import count, estimate, interval, label, listed, number, plural
from equipoise.platform.report.run_files import FederationFiles, RunFiles
from equipoise.platform.report.sections.federation_figures import METHODS, round_curves, site_forest
from equipoise.platform.report.sections.federation_ranking import beside_own_training

PLANS = {
    "folds": "Folds: every site is tested on its own patients who were not used for training",
    "leave_one_site_out": "One site left out: tested on a site that did not participate",
    "leave_one_cohort_out": "One cohort left out: tested on a cohort that did not participate",
}
SCOPES = {
    "pooled": "all test patients",
    "mean": "mean of sites",
    "weighted": "mean by patients",
    "worst": "worst site",
    "pairs": "pairs within sites",
}
_HOW_LOCAL = (
    "Models of the sites alone (local) are evaluated on the patients of their own site. They have no value over all "
    "test patients, because scores of different models are not comparable."
)
#: Columns of tables after those of :data:`METHODS`, where the study asks for them.
LINEAR = ("pooled ridge", "local ridge", "pooled elastic_net", "local elastic_net")
#: Paired differences: value of the column ``method`` → heading.
DIFFERENCES = {"federated - pooled": "federated − pooled", "federated - local": "federated − local"}


def build(run: RunFiles, params: SectionParams) -> Section | None:
    """None if the study has no federation and no result of one exists."""
    configured = run.study.get("federation") is not None
    if not configured and not (run.folder / "federated").exists():
        return None
    files = FederationFiles(run.folder)
    blocks: list[Block] = [*files.missing]
    if files.setting:
        blocks += [_key_numbers(files), *_clients(files)]
    blocks += beside_own_training(run)
    if files.sites is not None:
        for plan in dict.fromkeys(files.sites["plan"]):
            blocks += _plan(run, files.sites[files.sites["plan"] == plan], str(plan))
    if files.rounds is not None and (figure := round_curves(files.rounds, [task.name for task in run.tasks])):
        blocks.append(Figures([figure]))
    blocks += _costs(files.setting)
    blocks += _optimum(files.setting)
    blocks += _traffic(files)
    blocks.append(_privacy(files.setting))
    return Section("Federation", "The same model trained across sites that keep their patients.", blocks)


def federation_sentence(run: RunFiles) -> str:
    """What the main task gains or loses across the sites, in one line; empty without results of a federation."""
    if not (run.folder / "federated").exists() or not run.tasks:
        return ""
    files = FederationFiles(run.folder)
    main = run.tasks[0].name
    if files.sites is None or not files.setting:
        return ""
    rows = files.sites[(files.sites["task"] == main) & files.sites["scope"].isin(["mean", "pooled"])]
    known = rows[rows["value"].notna() & (rows["method"] == "federated")]
    known = known.sort_values(
        "scope", kind="stable"
    )  # the mean of sites first: models of sites have no pooled value
    if known.empty:
        return ""
    plan, scope, metric = (str(known.iloc[0][name]) for name in ("plan", "scope", "metric"))
    same = rows[(rows["plan"] == plan) & (rows["scope"] == scope)].set_index("method").to_dict("index")
    others = [
        f"{number(same[method]['value'], 2)} with {name}"
        for method, name in (("pooled", "pooled training"), ("local", "models of the sites alone"))
        if method in same and pd.notna(same[method]["value"])
    ]
    sites = plural(len(files.setting["clients"]), "site")
    text = (
        f"Federated across {sites} ({files.setting['federation']['strategy']}), {label(metric)} for {main} "
        f"({SCOPES[scope]}) is {estimate(same['federated'], 2)}"
    )
    text += f", against {listed(others)}" if others else ""
    return f"{text}{_told_apart(same)}."


def _told_apart(rows: dict[str, dict[str, Any]]) -> str:
    """Which paired differences of a scope exclude 0; empty without an interval."""
    known = {name: rows[name] for name in DIFFERENCES if name in rows and pd.notna(rows[name]["low"])}
    clear = []
    for name, row in known.items():
        if row["low"] > 0 or row["high"] < 0:
            other = name.removeprefix("federated - ")
            side = "better" if row["low"] > 0 else "worse"
            bounds = interval(row["low"], row["high"], 2)
            clear.append(f"{side} than {other} training by {number(abs(row['value']), 2)} ({bounds})")
    if not known:
        return ""
    return f"; it is {listed(clear)}" if clear else "; the paired differences do not tell them apart"


def _key_numbers(files: FederationFiles) -> KeyNumbers:
    setting = files.setting
    params = setting["federation"]
    sent = 0 if files.traffic is None else int(files.traffic["bytes"].sum())
    return KeyNumbers(
        [
            KeyNumber("Clients", count(len(setting["clients"])), f"sites by {params['sites']['scheme']}"),
            KeyNumber(
                "Strategy", str(params["strategy"]), f"server aggregation {params['server_aggregation']}"
            ),
            KeyNumber(
                "Rounds",
                count(params["rounds"]),
                f"at most; the model of the {params.get('keep') or 'last'} round is used; {setting['backend']} backend",
            ),
            KeyNumber("Parameters", count(setting["parameters"]), "in one update"),
            KeyNumber("Traffic", size(sent), "sent by the sites in all federations"),
        ]
    )


def _clients(files: FederationFiles) -> list[Block]:
    rows: list[list[str | Cell]] = []
    for client in files.setting["clients"]:
        merged = ", ".join(client["sites"]) if client["sites"] != [client["name"]] else ""
        rows.append([client["name"], count(client["patients"]), merged, "; ".join(client["flags"])])
    rows += [
        [name, count(n), "", "external: did not participate"]
        for name, n in (files.setting.get("external") or {}).items()
    ]
    table = Table(
        ["Client", "Patients", "Merged from", "Remarks"], rows, numeric=frozenset([1]), folded=len(rows) > 12
    )
    notes = [str(note) for note in files.setting.get("notes", ())]
    excluded = files.setting.get("benched") or []
    blocks: list[Block] = [table]
    if notes:
        blocks.append(Notice("Assignment of patients to clients", notes))
    if excluded:
        blocks.append(
            Notice("Clients excluded after repeated failures", [str(name) for name in excluded], tone="bad")
        )
    return blocks


def _plan(run: RunFiles, table: pd.DataFrame, plan: str) -> list[Block]:
    blocks: list[Block] = [Heading(PLANS.get(plan, plan)), Text(_HOW_LOCAL)]
    for task in run.tasks:
        of_task = table[table["task"] == task.name]
        if of_task.empty:
            continue
        metric = str(of_task["metric"].iloc[0])
        chance = CHANCE_LEVEL.get(metric)
        clients = of_task[of_task["scope"] == "client"]
        if figure := site_forest(clients, task.name, metric, chance, run.confidence):
            blocks.append(Figures([figure]))
        blocks.append(_overview(of_task, task.name, metric))
        blocks += _differences(of_task, task.name, metric)
        blocks.append(_by_site(clients, task.name, metric))
    return blocks


def _overview(rows: pd.DataFrame, task: str, metric: str) -> Table:
    """Pooled, mean, weighted, worst and pairs, a column per method; below, which sites have no value and why."""
    lines: list[list[str | Cell]] = []
    methods = _methods(rows)
    for scope, name in SCOPES.items():
        if not (rows["scope"] == scope).any():
            continue
        cells: list[str | Cell] = [name]
        for method in methods:
            matching = rows[(rows["scope"] == scope) & (rows["method"] == method)].to_dict("records")
            cells.append(_cell(matching[0], scope) if matching else Cell("–", tone="muted"))
        lines.append(cells)
    return Table(
        ["", *methods],
        lines,
        f"{label(metric)} of {task}: federated training and its baselines",
        numeric=frozenset(range(1, len(methods) + 1)),
        footnotes=_missing_sites(rows),
    )


def _missing_sites(rows: pd.DataFrame) -> list[str]:
    """A sentence for every method that has no value at some site."""
    means = rows[(rows["scope"] == "mean") & rows["method"].isin(_methods(rows)) & (rows["note"] != "")]
    return [f"{row['method']}: {_one_reason(str(row['note']))}." for row in means.to_dict("records")]


def _one_reason(note: str) -> str:
    """``0 of 2 sites; without a (x), b (x)`` as one sentence, because all sites lack a value for the same reason."""
    reasons = set(re.findall(r"\(([^()]*)\)", note))
    if not note.startswith("0 of ") or len(reasons) != 1:
        return note
    return f"no site has a value: {reasons.pop()}"


def _differences(rows: pd.DataFrame, task: str, metric: str) -> list[Block]:
    """Paired differences with their intervals."""
    names = [name for name in DIFFERENCES if (rows["method"] == name).any()]
    lines: list[list[str | Cell]] = []
    for scope, title in SCOPES.items():
        found = rows[(rows["scope"] == scope) & rows["method"].isin(names)]
        if found.empty:
            continue
        by_method = {row["method"]: row for row in found.to_dict("records")}
        cells = [
            _cell(by_method[name], scope) if name in by_method else Cell("–", tone="muted") for name in names
        ]
        lines.append([title, *cells])
    if not lines:
        return []
    return [
        Table(
            ["", *(DIFFERENCES[name] for name in names)],
            lines,
            f"Paired differences in {label(metric)} of {task}, over the sites for which both methods have a value and "
            "the patients that both predict. An interval that contains 0 does not tell the methods apart.",
            numeric=frozenset(range(1, len(names) + 1)),
        )
    ]


def _cell(row: dict[str, Any], scope: str) -> Cell:
    over_sites = scope in ("mean", "weighted")  # which sites have no value stands below the table
    note = str(row["client"]) if scope == "worst" else "" if over_sites else str(row["note"])
    return Cell(estimate(row), tone="muted" if pd.isna(row["value"]) else "", note=note)


def _methods(rows: pd.DataFrame) -> list[str]:
    """Columns of a table of methods."""
    return [*METHODS, *(method for method in LINEAR if (rows["method"] == method).any())]


def _by_site(clients: pd.DataFrame, task: str, metric: str) -> Table:
    lines: list[list[str | Cell]] = []
    methods = _methods(clients)
    for client, rows in clients.groupby("client", sort=True):
        by_method = {row["method"]: row for row in rows.to_dict("records")}
        first = next(iter(by_method.values()))
        cells = [
            _cell(by_method[m], "client") if m in by_method else Cell("–", tone="muted") for m in methods
        ]
        lines.append([str(client), count(first["n"]), *cells])
    return Table(
        ["Site", "Test patients", *methods],
        lines,
        f"{label(metric)} of {task} by site as a table",
        numeric=frozenset(range(1, len(methods) + 2)),
        folded=True,
    )


def _optimum(setting: dict[str, Any]) -> list[Block]:
    """How far the global weights of a linear model stayed from its optimum on the pooled training patients."""
    rows: list[list[str | Cell]] = [
        [
            row["plan"],
            row["fold"],
            row["task"],
            *(number(_or_nan(row[key]), 4) for key in ("objective", "train", "val")),
        ]
        for row in setting.get("optimum") or []
    ]
    if not rows:
        return []
    return [
        Heading("Distance from the optimum"),
        Table(
            ["Plan", "Fold", "Task", "Objective above the optimum", "Training loss", "Validation loss"],
            rows,
            "The model is linear, so that every task has one optimum on the pooled training patients, which the "
            "simulation can compute. Objective: training loss and ridge penalty (chosen by inner cross-validation) "
            "above the least possible. Losses: those of the global weights minus those of the optimum.",
            numeric=frozenset([3, 4, 5]),
        ),
    ]


def _costs(setting: dict[str, Any]) -> list[Block]:
    """Effect of each server aggregation on honest updates."""
    costs = setting.get("clean_costs") or []
    if not costs:
        return []
    used = setting["federation"]["server_aggregation"]
    lines: list[list[str | Cell]] = []
    for row in costs:
        name = Cell(row["server_aggregation"], note="used here" if row["server_aggregation"] == used else "")
        if row["note"]:
            lines.append([name, Cell("–", tone="muted", note=row["note"]), "–", "–"])
        else:
            lines.append([name, *(number(_or_nan(row[key])) for key in ("distance", "cosine", "length"))])
    return [
        Heading("Cost of server aggregations without an attack"),
        Table(
            [
                "Server aggregation",
                "Distance from the mean",
                "Cosine with the mean",
                "Length relative to the mean",
            ],
            lines,
            "One round of honest updates from the final weights, combined by every server aggregation. A distance of 0 "
            "is the weighted mean itself; at a distance of 1 an aggregation is as far from it as no update at all.",
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
        [str(client), size(int(row["bytes"])), *(count(row[outcome]) for outcome in sums.columns[1:])]
        for client, row in sums.iterrows()
    ]
    rejected = int(sums["quarantined"].sum())
    blocks: list[Block] = [
        Table(
            ["Client", "Sent", "Accepted", "Rejected", "Failed", "Late"],
            lines,
            "Traffic of each site, from the audit log (names and hashes of all arrays: rounds/ledger.jsonl)",
            numeric=frozenset(range(1, 6)),
            folded=len(lines) > 12,
        )
    ]
    if rejected:
        blocks.append(
            Text(
                f"{plural(rejected, 'update')} rejected by the update validator; the audit log gives the reasons.",
                tone="warn",
            )
        )
    return blocks


def _privacy(setting: dict[str, Any]) -> Notice:
    """The privacy statement that the federation wrote."""
    lines = setting.get("privacy_statement") or [
        "This run holds no privacy statement: it was made by an earlier version, or is not complete. Nothing is "
        "promised."
    ]
    privacy = (setting.get("federation") or {}).get("privacy") or {}
    return Notice("Privacy", [str(line) for line in lines], tone="" if any(privacy.values()) else "warn")


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
