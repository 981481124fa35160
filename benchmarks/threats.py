"""What attacks do to a federation, and what each defence costs where nobody attacks. SYNTHETIC.

Six sites of 20 to 100 patients, the largest one malicious, through the product's engine with each server aggregation:
C-index without attack and under each attack; distance and cosine of an aggregation's first update to the weighted mean
of the same updates (clean cost); a hidden trigger in tiles; reconstruction of a patient from an update (gradient
inversion); recognition of training patients by their loss (membership inference). ``gate`` is the mean with
norm bounds of the update validator (3 in the first round, 3 median norms later); all others are without them.

Prints tables and a last line of JSON, and writes results/threats.json, which docs/security.md quotes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import threat_cases as cases
from benchmarks.threat_cases import Problem, train
from benchmarks.update_directions import directions
from equipoise.platform.federation.objective import weight_table
from equipoise.platform.federation.params import UpdateValidatorParams
from equipoise.platform.federation.privacy.accountant import noise_for
from equipoise.platform.federation.simulation.clean_costs import clean_cost
from equipoise.platform.registry import entries, get

LOCAL = {"steps": 10, "optimizer": "sgd", "lr": 0.2, "batch": 32}
ATTACKS: dict[str, cases.Change | None] = {
    "none": None,
    "sign_flip_10": cases.sign_flip(10),
    "boost_6": cases.boost(6),
    "noise_5": cases.noise(5),
    "nan": cases.not_finite,
}
GATED = UpdateValidatorParams(norm_factor=3.0, max_norm=3.0, window=5)


def survival_table(seeds: range) -> dict[str, dict[str, float]]:
    """Aggregation → attack → pooled test C-index, mean over seeds; ``gate`` is the mean with norm bounds."""
    table: dict[str, dict[str, float]] = {}
    for rule in (*entries("server_aggregations"), "gate"):
        scores: dict[str, list[float]] = {}
        for seed in seeds:
            problem = cases.survival(seed)
            common: dict[str, Any] = {"local": LOCAL, "exclude_after": 99}
            bounded = {"server_aggregation": "mean", "validation": GATED}
            common |= bounded if rule == "gate" else {"server_aggregation": rule}
            for attack, change in ATTACKS.items():
                result, _ = train(problem, change=change, **common)
                scores.setdefault(attack, []).append(cases.concordance(result, problem))
            flipped = cases.reversed_times(problem)
            result, _ = train(flipped, **common)
            scores.setdefault("reversed_times", []).append(cases.concordance(result, flipped))
        table[rule] = {attack: round(statistics.fmean(values), 3) for attack, values in scores.items()}
    return table


def costs(seeds: range) -> dict[str, dict[str, float]]:
    """Aggregation → how its first update differs from the weighted mean of the same updates."""
    by_name: dict[str, list[Any]] = {}
    for seed in seeds:
        problem = cases.survival(seed)
        _, wire = train(problem, local=LOCAL, rounds=1)
        schema = problem.schema()
        weights = weight_table([update.counts for update in wire.seen], schema.groups)
        for name, entry in entries("server_aggregations").items():
            rule = entry.load()(entry.params(), seed=0)
            by_name.setdefault(name, []).append(clean_cost(wire.seen, schema, weights, rule))
    return {
        name: {
            "distance": round(statistics.fmean(row.distance for row in rows), 3),
            "cosine": round(statistics.fmean(row.cosine for row in rows), 3),
        }
        for name, rows in by_name.items()
    }


def backdoor(seeds: range) -> dict[str, dict[str, float]]:
    """Aggregation → accuracy and success of the trigger, with and without attack; rank of the attacker's cosine."""
    table: dict[str, dict[str, float]] = {}
    for rule in ("mean", "norm_clip", "median", "trimmed_mean", "geometric_median", "balanced"):
        scores: dict[str, list[float]] = {}
        for seed in seeds:
            problem = cases.bags(seed)
            poisoned = cases.with_trigger(problem)
            clean, _ = train(problem, server_aggregation=rule, local=LOCAL)
            attacked, wire = train(poisoned, server_aggregation=rule, local=LOCAL, change=cases.boost(6))
            schema, first = problem.schema(), wire.seen[: len(cases.SIZES)]
            rows = directions(first, schema, weight_table([update.counts for update in first], schema.groups))
            lowest = min(rows, key=lambda row: row.cosine)
            for name, value in {
                "auc_clean": cases.accuracy(clean.model, problem),
                "auc_attacked": cases.accuracy(attacked.model, problem),
                "trigger_clean": cases.trigger_success(clean.model, problem),
                "trigger_attacked": cases.trigger_success(attacked.model, problem),
                "attacker_has_lowest_cosine": float(lowest.client == cases.EVIL),
            }.items():
                scores.setdefault(name, []).append(value)
        table[rule] = {name: round(statistics.fmean(values), 3) for name, values in scores.items()}
    return table


def inversion(seeds: range) -> dict[str, float]:
    """Largest cosine of what is reconstructed from an update with any patient's input, mean over seeds."""
    ways: dict[str, Callable[[int], float]] = {
        "linear_1_step": lambda seed: _inverted(cases.binary(seed, width=20), "heads.0", 1),
        "abmil_1_step": lambda seed: _inverted(cases.bags(seed, tiles=1), "project.0", 1),
        "linear_10_steps": lambda seed: _inverted(cases.binary(seed, width=20), "heads.0", 10),
        "linear_10_steps_dp": lambda seed: _inverted(cases.binary(seed, width=20), "heads.0", 10, dp=True),
        "linear_1_step_secure": lambda seed: _inverted(
            cases.binary(seed, width=20), "heads.0", 1, secure=True
        ),
        "linear_chance": lambda seed: _chance(cases.binary(seed, width=20), seed),
    }
    return {name: round(statistics.fmean(way(seed) for seed in seeds), 4) for name, way in ways.items()}


def _inverted(problem: Problem, layer: str, steps: int, *, dp: bool = False, secure: bool = False) -> float:
    settings: dict[str, Any] = {}
    if dp:
        settings["record_level"] = {"clip": 1.0, "noise": 1.0, "delta": 1e-3}
    if secure:
        settings["secure_aggregation"] = {}
    privacy = cases.private(problem, size=1, steps=steps, seed=problem.seed, **settings) if settings else None
    local = {"steps": steps, "optimizer": "sgd", "lr": 0.1, "batch": 1}
    _, wire = train(problem, local=local, rounds=1, privacy=privacy)
    update = next(update for update in wire.seen if update.client == cases.EVIL)
    return cases.likeness(
        cases.inverted(update, problem.schema(), layer), cases.inputs_of(problem, cases.EVIL)
    )


def _chance(problem: Problem, seed: int) -> float:
    patients, rng = cases.inputs_of(problem, cases.EVIL), np.random.default_rng([seed, 99])
    draws = rng.normal(size=(50, patients.shape[1]))
    return statistics.fmean(cases.likeness(draw, patients) for draw in draws)


def memberships(seeds: range) -> dict[str, float]:
    """Areas under the curve of membership inference and of the task itself, with and without privacy of patients."""
    sizes, steps, rounds, size = dict.fromkeys(cases.SIZES, 25), 25, 4, 5
    rows: dict[str, list[float]] = {}
    noise = noise_for(size / 25, steps * rounds, 3.0, 1e-2, precision=0.01)
    local = {"steps": steps, "optimizer": "sgd", "lr": 0.5, "batch": size}
    for seed in seeds:
        problem = cases.binary(seed, sizes=sizes, width=300)
        everyone = {case.patient: case for patients in problem.train.values() for case in patients}
        pooled = dataclasses.replace(problem, train={"pooled": cases.CaseList(everyone, tuple(everyone))})
        privacy = cases.private(
            problem,
            size=size,
            steps=steps,
            seed=seed,
            record_level={"clip": 1.0, "noise": noise, "delta": 1e-2},
        )
        runs = {
            "pooled": train(pooled, local=local | {"batch": 30}, rounds=2 * rounds)[0],
            "federated": train(problem, local=local, rounds=rounds)[0],
            "private": train(problem, local=local, rounds=rounds, privacy=privacy)[0],
        }
        for name, result in runs.items():
            rows.setdefault(f"membership_{name}", []).append(cases.membership(result.model, problem))
            rows.setdefault(f"task_{name}", []).append(cases.accuracy(result.model, problem))
        rows.setdefault("epsilon", []).append(result.history[-1]["epsilon_patients"])
        rows.setdefault("epsilon_tight", []).append(max(privacy.tight_epsilons().values()))
    return {name: round(statistics.fmean(values), 3) for name, values in rows.items()}


def main() -> None:
    """Run all of it and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    started, load = time.perf_counter(), os.getloadavg()[0]
    figures: dict[str, Any] = {"data": "SYNTHETIC", "seeds": len(seeds)}
    parts: dict[str, Callable[[range], dict[str, Any]]] = {
        "inversion": inversion,
        "membership": memberships,
        "clean_cost": costs,
        "backdoor": backdoor,
        "c_index": survival_table,
    }
    for name, part in parts.items():
        figures[name] = part(seeds)
        _print(name, figures[name])
    figures |= {
        "rules": {name: get("server_aggregations", name).summary for name in entries("server_aggregations")},
        "seconds": round(time.perf_counter() - started, 1),
        "load_before": round(load, 1),
        "versions": {name: version(name) for name in ("torch", "numpy", "dp-accounting", "cryptography")},
    }
    results = Path(__file__).parent / "results" / "threats.json"
    results.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


def _print(name: str, table: dict[str, Any]) -> None:
    print(f"\n{name}")
    for row, values in table.items():
        if isinstance(values, dict):
            values = "  ".join(f"{key} {value:.3f}" for key, value in values.items())
        print(f"  {row:<22} {values}", flush=True)


if __name__ == "__main__":
    main()
