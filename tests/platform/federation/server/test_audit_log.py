"""The audit log: a row for every message without its values, and the same file after an interruption."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.messages import ClientUpdate
from equipoise.platform.federation.server.audit_log import AuditLog, digest


def update(client: str, round_: int, value: float = 1.0) -> ClientUpdate:
    return ClientUpdate(
        schema_hash="h",
        round=round_,
        client=client,
        request_id="n",
        delta=np.full(3, value, np.float32),
        counts={"shared": 9},
        n=9,
        steps=1,
        metrics={"loss/os": 0.5},
        arrays={"control": np.zeros(3, np.float32)},
    )


def play(audit_log: AuditLog, rounds: range, order: str = "ab") -> None:
    for round_ in rounds:
        for client in order:
            sent = update(client, round_, round_ + ord(client))
            audit_log.record(round_, client, "accepted", update=sent, size=len(sent.to_bytes()))
        audit_log.record(
            round_, "c", "quarantined", size=12, reason="finite: 1 of 3 numbers of delta are not finite"
        )
        audit_log.close_round(round_)


def test_rows_hold_names_sizes_and_hashes_and_no_values(tmp_path: Path) -> None:
    audit_log = AuditLog(tmp_path / "ledger.jsonl")
    sent = update("a", 0, 123.25)
    audit_log.record(0, "a", "accepted", update=sent, size=len(sent.to_bytes()))
    audit_log.close_round(0)
    (row,) = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert row == {
        "round": 0,
        "client": "a",
        "verdict": "accepted",
        "bytes": len(sent.to_bytes()),
        "keys": ["control", "delta", "loss/os"],
        "sha256": {
            "control": hashlib.sha256(bytes(12)).hexdigest(),
            "delta": hashlib.sha256(np.full(3, 123.25, "<f4").tobytes()).hexdigest(),
        },
    }


def test_order_of_arrival_does_not_show(tmp_path: Path) -> None:
    one, other = AuditLog(tmp_path / "one"), AuditLog(tmp_path / "other")
    play(one, range(3), "ab")
    play(other, range(3), "ba")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert one.rows == other.rows


def test_interrupted_and_resumed_is_the_same_file(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "resumed"
    play(AuditLog(whole), range(4))
    play(AuditLog(path), range(3))
    with path.open("a") as file:
        file.write('{"round": 3, "cli')  # killed while writing
    again = AuditLog(path)
    again.keep_until(1)  # the checkpoint is that of round 1
    play(again, range(2, 4))
    assert path.read_bytes() == whole.read_bytes()


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"round": 0}\nnonsense\n{"round": 1}\n')
    with pytest.raises(FederationError, match="line 2"):
        AuditLog(path)


def test_totals_for_the_report() -> None:
    audit_log = AuditLog()
    play(audit_log, range(2))
    size = len(update("a", 0).to_bytes())
    assert audit_log.totals() == {
        "a": {"bytes": 2 * size, "accepted": 2},
        "b": {"bytes": 2 * size, "accepted": 2},
        "c": {"bytes": 24, "quarantined": 2},
    }


def test_unknown_verdicts_are_refused() -> None:
    with pytest.raises(ValueError, match="not one of"):
        AuditLog().record(0, "a", "perhaps")


def test_hashes_are_of_little_endian_numbers() -> None:
    assert digest(np.array([1.5], ">f4")) == digest(np.array([1.5], "<f4"))
    assert digest(np.array([1, 2], np.int64)[::-1]) == digest(np.array([2, 1], np.int64))
