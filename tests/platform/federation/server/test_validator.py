"""The update validator rejects bad updates with a reason, whatever the order of arrival."""

import dataclasses
import json

import numpy as np
import pytest

from equipoise.platform.federation.messages import ClientUpdate
from equipoise.platform.federation.params import UpdateValidatorParams
from equipoise.platform.federation.server.validator import LARGEST_NORM, ExpectedUpdate, UpdateValidator

SIZE = 4
GOOD = ClientUpdate(
    schema_hash="h",
    round=3,
    client="a",
    request_id="n",
    delta=np.array([1, 2, 2, 0], np.float32),
    counts={"shared": 20, "task:os": 8},
    n=20,
    steps=5,
    metrics={"loss/os": 0.7},
    arrays={"control": np.ones(SIZE, np.float32)},
)


def expected(client: str = "a", **changes: object) -> ExpectedUpdate:
    known = ExpectedUpdate(
        schema_hash="h",
        size=SIZE,
        round=3,
        client=client,
        request_id="n",
        n=20,
        counts={"shared": 20, "task:os": 8},
        arrays=frozenset({"control"}),
    )
    return dataclasses.replace(known, **changes)


def changed(**changes: object) -> ClientUpdate:
    return dataclasses.replace(GOOD, **changes)


def delta(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


BAD = {
    "schema": changed(schema_hash="other"),
    "identity: stale round": changed(round=2),
    "identity: future round": changed(round=4),
    "identity: wrong client": changed(client="b"),
    "replay: nonce": changed(request_id="old"),
    "shape: too long": changed(delta=np.zeros(SIZE + 1, np.float32)),
    "shape: two axes": changed(delta=np.zeros((SIZE, 1), np.float32)),
    "shape: dtype": changed(delta=GOOD.delta.astype(np.float64)),
    "shape: integers": changed(delta=GOOD.delta.astype(np.int64)),
    "shape: of a further vector": changed(arrays={"control": np.ones(3, np.float32)}),
    "arrays: extra": changed(arrays={**GOOD.arrays, "patients": np.ones(SIZE, np.float32)}),
    "arrays: missing": changed(arrays={}),
    "finite: NaN": changed(delta=delta(1, np.nan, 0, 0)),
    "finite: Inf": changed(delta=delta(1, -np.inf, 0, 0)),
    "finite: further vector": changed(arrays={"control": delta(1, np.nan, 0, 0)}),
    "finite: metric": changed(metrics={"loss/os": float("nan")}),
    "metrics: not on the list": changed(metrics={"age of patient 7": 71.0}),
    "metrics: a long text as a name": changed(metrics={"loss/" + "x" * 500: 1.0}),
    "metrics: too few patients": changed(n=4),
    "count: a billion": changed(n=10**9),
    "count: negative": changed(n=-1),
    "count: of a group": changed(counts={"shared": 20, "task:os": 9}),
    "count: of an unknown group": changed(counts={"shared": 20, "task:msi": 1}),
    "count: steps": changed(steps=-1),
    "free_rider: nothing moved": changed(delta=delta(0, 0, 0, 0)),
}


def test_a_good_update_passes() -> None:
    assert UpdateValidator().check(GOOD, expected()) is None


@pytest.mark.parametrize("name", BAD)
def test_bad_updates_are_rejected_and_leave_no_trace(name: str) -> None:
    validator = UpdateValidator()
    reason = validator.check(BAD[name], expected())
    assert reason is not None
    assert reason.kind == name.partition(":")[0]
    assert str(reason).startswith(reason.kind)
    # The client may still send what it should have sent.
    assert validator.check(GOOD, expected()) is None


def test_a_duplicate_is_a_replay_until_the_next_round() -> None:
    validator = UpdateValidator()
    assert validator.check(GOOD, expected()) is None
    assert validator.check(GOOD, expected()).kind == "replay"
    validator.close_round(None)
    assert validator.check(changed(round=4, request_id="m"), expected(round=4, request_id="m")) is None


def test_who_has_no_labelled_patient_may_move_nothing() -> None:
    idle = changed(delta=delta(0, 0, 0, 0), counts={"shared": 0})
    assert UpdateValidator().check(idle, expected()) is None
    unmoved = changed(delta=delta(0, 0, 0, 0), steps=0)
    assert UpdateValidator().check(unmoved, expected()) is None


def round_of(validator: UpdateValidator, lengths: list[float], round_: int = 3) -> list[str | None]:
    kinds = []
    for i, length in enumerate(lengths):
        update = changed(client=f"c{i}", delta=delta(length, 0, 0, 0), round=round_)
        reason = validator.check(update, expected(f"c{i}", round=round_))
        kinds.append(None if reason is None else reason.kind)
    validator.close_round(None)
    return kinds


def test_norms_are_bounded_by_the_median_of_earlier_rounds() -> None:
    validator = UpdateValidator(UpdateValidatorParams(norm_factor=10))
    assert validator.bound() == LARGEST_NORM
    assert round_of(validator, [1, 2, 3]) == [None] * 3
    assert validator.bound() == 20
    assert round_of(validator, [19, 21, 1], 4) == [None, "norm", None]
    assert validator.bound() == 20  # the median of 1 1 2 3 19
    assert round_of(validator, [30, 30, 30], 5) == ["norm"] * 3


def test_the_bound_does_not_depend_on_who_answers_first() -> None:
    one, other = (
        UpdateValidator(UpdateValidatorParams(window=2)),
        UpdateValidator(UpdateValidatorParams(window=2)),
    )
    for lengths in ([1, 5, 2], [1, 1, 9], [4, 3, 3]):
        round_of(one, lengths)
        round_of(other, lengths[::-1])
    assert one.bound() == other.bound() == 10 * 3
    # Within a round the bound stands still.
    before = one.bound()
    one.check(changed(client="c9", delta=delta(29, 0, 0, 0)), expected("c9"))
    assert one.bound() == before


def test_the_first_round_can_be_bounded_too() -> None:
    assert round_of(UpdateValidator(UpdateValidatorParams(max_norm=5)), [4, 6]) == [None, "norm"]
    assert round_of(UpdateValidator(UpdateValidatorParams(norm_factor=None)), [1, 1, 1, 1e6]) == [None] * 4


def test_strategy_vectors_are_bounded_too() -> None:
    validator = UpdateValidator()
    round_of(validator, [1, 1, 1])
    huge = changed(arrays={"control": np.full(SIZE, 1e5, np.float32)})
    assert validator.check(huge, expected()).text.startswith("control has a norm")


def test_outliers_of_a_whole_round() -> None:
    updates = [changed(client=f"c{i}", delta=delta(x, 0, 0, 0)) for i, x in enumerate([1, 2, 3, 26])]
    outliers = UpdateValidator(UpdateValidatorParams(norm_factor=10)).outliers(updates)
    assert list(outliers) == ["c3"]
    assert outliers["c3"].kind == "norm"
    assert UpdateValidator(UpdateValidatorParams(norm_factor=None)).outliers(updates) == {}


def test_an_echo_of_the_last_step_is_a_free_rider() -> None:
    validator, step = UpdateValidator(), delta(0.5, -1, 2, 0)
    validator.close_round(step)
    for factor in (1.0, 0.3, 7.0):
        assert (
            validator.check(changed(delta=(factor * step).astype(np.float32)), expected()).kind
            == "free_rider"
        )
    # What is merely similar is honest: consecutive steps of a small model are.
    assert validator.check(changed(delta=step + delta(0, 0, 0, 0.01)), expected()) is None
    assert validator.check(changed(client="b", delta=-step), expected("b")) is None


def test_of_masked_vectors_only_the_form_is_looked_at() -> None:
    validator, known = UpdateValidator(), expected(dtype="uint64", arrays=frozenset())
    masked = changed(delta=np.array([0, 2**64 - 1, 5, 7], np.uint64), arrays={})
    assert validator.check(changed(arrays={}), known).kind == "shape"
    assert validator.check(masked, known) is None
    validator.close_round(None)
    assert validator.bound() == LARGEST_NORM


def test_who_fails_too_often_is_excluded() -> None:
    validator = UpdateValidator(exclude_after=2)
    assert not validator.fail("a")
    assert not validator.fail("b")
    assert validator.fail("a")
    assert validator.excluded == {"a"}


def test_state_survives_a_checkpoint() -> None:
    validator, step = UpdateValidator(), delta(0.5, -1, 2, 0)
    round_of(validator, [1, 2, 3])
    validator.fail("b")
    validator.close_round(step)
    again = UpdateValidator()
    again.load_state_dict(json.loads(json.dumps(validator.state_dict())), step)
    assert again.bound() == validator.bound() == 20
    assert again.failures == {"b": 1}
    assert again.check(changed(delta=step), expected()).kind == "free_rider"
    assert json.dumps(again.state_dict()) == json.dumps(validator.state_dict())


def test_rejected_later_is_not_remembered() -> None:
    validator = UpdateValidator()
    for i, length in enumerate([1, 1, 1, 500]):
        validator.check(changed(client=f"c{i}", delta=delta(length, 0, 0, 0)), expected(f"c{i}"))
    validator.close_round(None, rejected=["c3"])
    assert validator.norms[-1]["delta"] == [1, 1, 1]
