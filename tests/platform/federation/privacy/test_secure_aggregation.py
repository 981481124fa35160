"""Masked sums: exact with and without dropouts, and the server sees nothing else."""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.privacy.mechanism import TooFewContributorsError
from equipoise.platform.federation.privacy.secure_aggregation import (
    MaskedSum,
    SimulatedClients,
    add_mask,
    threshold_of,
)
from equipoise.platform.federation.privacy.shamir import PRIME, Share, join, split


def draw(seed: int):
    return np.random.default_rng(seed).bytes


def spans_of(size: int) -> list[tuple[str, slice]]:
    """Two groups, one of them in two pieces."""
    return [
        ("trunk", slice(0, size // 2)),
        ("head", slice(size // 2, size - 1)),
        ("trunk", slice(size - 1, size)),
    ]


def simulated_clients(count: int, threshold: int, size: int = 4, round_: int = 1) -> SimulatedClients:
    draws = {f"site{i}": draw(100 + i) for i in range(count)}
    return SimulatedClients(draws, round_, spans_of(size), threshold)


def contributions(server: MaskedSum, **groups: list[str]) -> dict[str, list[str]]:
    """All who answered contribute to both groups, unless said otherwise."""
    return {"trunk": server.survivors, "head": server.survivors} | groups


def masked_sum(clients: SimulatedClients, size: int, threshold: int) -> MaskedSum:
    return MaskedSum(size, spans_of(size), clients.keys, threshold, 1)


def vectors(count: int, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"site{i}": rng.integers(-(2**40), 2**40, size) for i in range(count)}


@pytest.mark.parametrize("dropped", [[], ["site0"], ["site2"], ["site5", "site1"]])
def test_sums_are_exact_also_with_dropouts(dropped: list[str]) -> None:
    clients, x = simulated_clients(6, 4, 1000), vectors(6, 1000)
    server = masked_sum(clients, 1000, 4)
    for name in ("site3", "site5", "site0", "site1", "site4", "site2"):
        if name not in dropped:
            server.add(name, clients.masked(name, x[name].view(np.uint64)))
    assert server.dropped == sorted(dropped)
    total = server.unmasked(clients.reveal(server.survivors, server.dropped, contributions(server)))
    np.testing.assert_array_equal(total, sum(x[name] for name in x if name not in dropped))


def test_any_threshold_of_the_survivors_can_unmask() -> None:
    clients, x = simulated_clients(5, 3, 20), vectors(5, 20)
    server = masked_sum(clients, 20, 3)
    for name in list(x)[:4]:
        server.add(name, clients.masked(name, x[name].view(np.uint64)))
    revealed = clients.reveal(server.survivors, server.dropped, contributions(server))
    expected = sum(list(x.values())[:4])
    for three in itertools.permutations(revealed, 3):
        np.testing.assert_array_equal(server.unmasked(three), expected)
    with pytest.raises(TooFewContributorsError, match="3 are needed"):
        server.unmasked(revealed[:2])


def test_a_single_masked_vector_looks_uniformly_random() -> None:
    """Chi-square over all bytes and equal counts of every bit, for a vector of zeros and one of small numbers."""
    size = 40_000
    clients = simulated_clients(3, 3, size)
    for plain in (np.zeros(size, np.uint64), np.arange(size, dtype=np.uint64)):
        seen = clients.masked("site1", plain)
        counts = np.bincount(seen.view(np.uint8), minlength=256)
        expected = 8 * size / 256
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert 150 < chi < 390  # 255 degrees of freedom: beyond either by chance once in 1e6
        bits = np.unpackbits(seen.view(np.uint8)).reshape(size, 64).mean(0)
        assert np.abs(bits - 0.5).max() < 6 * 0.5 / np.sqrt(size)
        assert abs(np.corrcoef(seen.astype(float), plain + np.arange(size) % 2)[0, 1]) < 0.03


def test_the_same_vector_looks_different_in_every_round_and_at_every_client() -> None:
    zero = np.zeros(50, np.uint64)
    first, second = simulated_clients(3, 3, 50), simulated_clients(3, 3, 50, round_=2)
    seen = [first.masked("site0", zero), first.masked("site1", zero), second.masked("site0", zero)]
    for one, other in itertools.combinations(seen, 2):
        assert not np.intersect1d(one, other).size


def test_the_server_holds_nothing_but_the_masked_sum() -> None:
    clients, x = simulated_clients(4, 3, 30), vectors(4, 30)
    server = masked_sum(clients, 30, 3)
    masked = {name: clients.masked(name, x[name].view(np.uint64)) for name in x}
    for name in x:
        server.add(name, masked[name])
    arrays = [value for value in vars(server).values() if isinstance(value, np.ndarray)]
    assert len(arrays) == 1
    np.testing.assert_array_equal(arrays[0], sum(masked.values()))
    assert not np.array_equal(server.total.view(np.int64), sum(x.values()))
    assert set(vars(server)) == {"size", "spans", "keys", "threshold", "round_", "total", "survivors"}


def test_what_is_not_masked_is_refused() -> None:
    clients = simulated_clients(3, 3)
    server = masked_sum(clients, 4, 3)
    for bad in (np.zeros(4, np.float32), np.zeros(4, np.int64), np.zeros(5, np.uint64)):
        with pytest.raises(FederationError, match="not a masked vector"):
            server.add("site0", bad)
    with pytest.raises(FederationError, match="no masks"):
        server.add("stranger", np.zeros(4, np.uint64))
    server.add("site0", np.zeros(4, np.uint64))
    with pytest.raises(FederationError, match="answered before"):
        server.add("site0", np.zeros(4, np.uint64))


def test_clients_never_reveal_both_secrets_of_one_client() -> None:
    clients = simulated_clients(4, 3)
    everyone = list(clients.keys)
    with pytest.raises(FederationError, match="both as answered and as dropped"):
        clients.reveal(everyone, ["site3"], {})
    groups = {"trunk": everyone, "head": everyone[:2]}
    first = clients.reveal(everyone, [], groups)
    assert all(not revealed.keys for revealed in first)
    for dropped, told in [(["site3"], groups), ([], {"trunk": everyone, "head": everyone})]:
        with pytest.raises(FederationError, match="second list"):
            clients.reveal([name for name in everyone if name not in dropped], dropped, told)


def test_too_few_survivors_or_clients_are_refused() -> None:
    with pytest.raises(TooFewContributorsError, match="needed for a sum"):
        simulated_clients(4, 3).reveal(["site0", "site1"], ["site2", "site3"], {})
    for count, threshold in [(2, 2), (3, 2), (4, 2), (8, 4)]:
        with pytest.raises(FederationError, match=f"{count} clients with a threshold of {threshold}"):
            simulated_clients(count, threshold)


@pytest.mark.parametrize("dropped", [[], ["site1"]])
def test_a_group_of_fewer_than_three_contributors_stays_masked(dropped: list[str]) -> None:
    """One owner of the head, two, and three of whom one dropped out: its coordinates are never known."""
    size = 1000
    for owners in (["site0"], ["site0", "site2"], ["site0", "site1", "site2"]):
        clients, x = simulated_clients(5, 3, size), vectors(5, size)
        server = masked_sum(clients, size, 3)
        head = spans_of(size)[1][1]
        for name, vector in x.items():
            if name not in owners:
                vector[head] = 0
            if name not in dropped:
                server.add(name, clients.masked(name, vector.view(np.uint64)))
        revealed = clients.reveal(server.survivors, server.dropped, contributions(server, head=owners))
        total = server.unmasked(revealed)
        true = sum(x[name] for name in server.survivors)
        rest = np.ones(size, bool)
        rest[head] = False
        np.testing.assert_array_equal(total[rest], true[rest])
        if len(set(owners) - set(dropped)) < 3:
            assert all("head" not in answer.seeds for answer in revealed)
            assert not total[head].any()
            assert not np.intersect1d(server.total[head].view(np.int64), true[head]).size
        else:
            np.testing.assert_array_equal(total[head], true[head])


def test_two_survivors_never_learn_each_others_vector() -> None:
    """Whatever the number of clients at first: two who are left reveal nothing at all."""
    for count in range(3, 9):
        threshold = threshold_of(0.51, count)
        assert threshold >= 3
        clients = simulated_clients(count, threshold)
        names = list(clients.keys)
        with pytest.raises(TooFewContributorsError):
            clients.reveal(names[:2], names[2:], {"trunk": names[:2], "head": names[:2]})


def test_sealed_shares_are_tied_to_sender_receiver_and_round() -> None:
    from equipoise.platform.federation.privacy.secure_aggregation import Participant

    people = {name: Participant(name, 1, spans_of(4), draw(i)) for i, name in enumerate("abc")}
    keys = {name: person.advertise() for name, person in people.items()}
    sealed = people["a"].share(keys, 3)
    changed = sealed["b"][:-1] + bytes([sealed["b"][-1] ^ 1])
    for message, receiver in [(changed, "b"), (sealed["b"], "c")]:
        with pytest.raises(FederationError, match="changed in transit"):
            people[receiver].receive({"a": message}, keys)
    people["b"].receive({"a": sealed["b"]}, keys)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(0, 6), st.binary(min_size=32, max_size=32))
def test_shamir_gives_the_secret_back_from_any_threshold(threshold: int, more: int, secret: bytes) -> None:
    shares = split(secret, threshold, threshold + more, draw(1))
    assert join(shares[-threshold:], 32) == secret
    assert join(shares, 32) == secret
    if threshold > 1:
        with contextlib.suppress(ValueError):  # the number has more than 32 bytes
            assert join(shares[: threshold - 1], 32) != secret


def test_one_share_too_few_fits_every_secret() -> None:
    """For t - 1 shares there is a polynomial through any secret: they reveal nothing."""
    secret, other = bytes(31) + b"a", bytes(31) + b"b"
    shares = split(secret, 3, 5, draw(1))[:2]
    # The third point that turns these two shares into the other secret exists.
    weights = [3 * pow(1, -1, PRIME), -3 % PRIME, 1]  # Lagrange at 0 for places 1, 2, 3
    value = (
        int.from_bytes(other, "big") - sum(w * s.value for w, s in zip(weights, shares, strict=False))
    ) % PRIME
    assert join([*shares, Share(3, value)], 32) == other


def test_masks_cancel_modulo_2_to_the_64() -> None:
    vector = np.array([0, 2**64 - 1, 5], np.uint64)
    before = vector.copy()
    add_mask(vector, bytes(32))
    assert not np.array_equal(vector, before)
    add_mask(vector, bytes(32), negative=True)
    np.testing.assert_array_equal(vector, before)


@pytest.mark.parametrize(
    ("share", "clients", "expected"), [(2 / 3, 6, 4), (2 / 3, 3, 3), (0.51, 4, 3), (0.51, 10, 6), (1.0, 5, 5)]
)
def test_threshold(share: float, clients: int, expected: int) -> None:
    assert threshold_of(share, clients) == expected
