r"""Secure aggregation: the server learns only the sum (Bonawitz et al., CCS 2017, "Practical secure aggregation").

Vectors are whole numbers of the ring Z_2^64, the engine's fixed point. Client u sends

.. math:: y_u = x_u + \mathrm{PRG}(b_u) + \sum_{v > u} \mathrm{PRG}(s_{uv}) - \sum_{v < u} \mathrm{PRG}(s_{uv})
          \pmod{2^{64}},

with s_uv agreed by X25519 and HKDF, and the keystream of ChaCha20 as PRG. In the sum the pairwise masks cancel,
whatever the order. Every client has shared b_u and the key behind its s_uv among all (Shamir, t of n): for those
who answered the others reveal shares of b_u, for those who dropped out shares of the key, and never both, since
together they would unmask one client. Sums are exact, and equal those of an unmasked federation bit for bit.

A sum hides its summands only if there are enough of them: the sum of one is the update, and of two each learns the
other's by subtracting its own. The clients do not reveal a sum of fewer than :data:`MIN_CONTRIBUTORS`. Not every client
trains every group of parameters, so b_u is one secret for each group, and the secrets of a group are revealed only if
enough of those who answered contribute to it; the other groups stay masked for ever.

The server and up to t - 1 clients are assumed to be curious but to follow the protocol, and not to share what they
know: a client that tells the server its own update makes one contributor less. The signatures and the
consistency check by which the paper resists a server that lies about dropouts are not implemented.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.privacy.mechanism import TooFewContributorsError
from equipoise.platform.federation.privacy.shamir import WIDTH, Draw, Share, join, split

Ring = NDArray[np.uint64]

#: Numbers of a mask that are generated at once.
CHUNK = 1 << 16
#: Fewest contributors to a sum that is revealed: of two, each learns the vector of the other.
MIN_CONTRIBUTORS = 3
#: Groups of parameters and their slices of the vector.
Spans = Sequence[tuple[str, slice]]


@dataclass(frozen=True)
class PublicKeys:
    """Public keys of a client: one for encrypted messages to it, one for the agreement on masks."""

    box: bytes
    mask: bytes


@dataclass(frozen=True)
class Revealed:
    """Shares that one surviving client reveals: group → survivor → of its self-mask; dropped client → of its key."""

    seeds: Mapping[str, Mapping[str, Share]]
    keys: Mapping[str, Share]


class Participant:
    """A client's side of one round.

    Parameters
    ----------
    name, round_
        Client and round.
    spans
        Groups of the vector, each with a self-mask of its own.
    draw
        Source of random bytes: ``os.urandom``, in a simulation those of a generator seeded for (client, round).
    """

    def __init__(self, name: str, round_: int, spans: Spans, draw: Draw) -> None:
        self.name = name
        self.round = round_
        self.spans = tuple(spans)
        self.groups = _groups(spans)
        self._draw = draw
        self._box = X25519PrivateKey.from_private_bytes(draw(32))
        self._key = draw(32)
        self._seeds = {group: draw(32) for group in self.groups}
        self._shares: dict[str, tuple[dict[str, Share], Share]] = {}
        self._threshold = 0
        self._revealed: tuple[frozenset[str], frozenset[str], frozenset[str]] | None = None

    def advertise(self) -> PublicKeys:
        """First message: the public keys."""
        mask = X25519PrivateKey.from_private_bytes(self._key)
        return PublicKeys(self._box.public_key().public_bytes_raw(), mask.public_key().public_bytes_raw())

    def share(self, keys: Mapping[str, PublicKeys], threshold: int) -> dict[str, bytes]:
        """Second message: shares of all secrets for every client, each readable by that client only.

        Raises
        ------
        FederationError
            If the threshold is below :data:`MIN_CONTRIBUTORS`, or at most half of the clients, so that two disjoint
            groups could unmask different sums.
        """
        names, least = sorted(keys), max(len(keys) // 2 + 1, MIN_CONTRIBUTORS)
        if not least <= threshold <= len(names) or self.name not in keys:
            raise FederationError(
                f"secure aggregation of {len(names)} clients with a threshold of {threshold}",
                fix=f"let {MIN_CONTRIBUTORS} or more clients take part, with a threshold of at least {least} of them",
            )
        self._threshold = threshold
        secrets = [*self._seeds.values(), self._key]
        shares = [split(secret, threshold, len(names), self._draw) for secret in secrets]
        sealed = {}
        for name, *of_client in zip(names, *shares, strict=True):
            if name == self.name:
                self._shares[name] = self._by_group(of_client)
            else:
                values = (share.value.to_bytes(WIDTH, "big") for share in of_client)
                text = b"".join([of_client[0].x.to_bytes(4, "big"), *values])
                nonce = self._draw(12)
                box = ChaCha20Poly1305(self._agree(self._box, keys[name].box, b"box"))
                sealed[name] = nonce + box.encrypt(nonce, text, self._associated_data(self.name, name))
        return sealed

    def receive(self, sealed: Mapping[str, bytes], keys: Mapping[str, PublicKeys]) -> None:
        """Store the shares that other clients sent through the server.

        Raises
        ------
        FederationError
            If one was changed in transit or is meant for another client.
        """
        for sender, message in sealed.items():
            box = ChaCha20Poly1305(self._agree(self._box, keys[sender].box, b"box"))
            try:
                text = box.decrypt(message[:12], message[12:], self._associated_data(sender, self.name))
            except InvalidTag:
                raise FederationError(
                    f"shares from {sender} for {self.name} were changed in transit"
                ) from None
            index = int.from_bytes(text[:4], "big")
            values = [
                int.from_bytes(text[start : start + WIDTH], "big") for start in range(4, len(text), WIDTH)
            ]
            self._shares[sender] = self._by_group([Share(index, value) for value in values])

    def masked(self, vector: Ring, keys: Mapping[str, PublicKeys]) -> Ring:
        """Third message: the vector under its own and all pairwise masks."""
        masked = np.array(vector, dtype=np.uint64)
        for group, seed in self._seeds.items():
            add_mask_of_group(masked, self.spans, group, _derive(seed, b"self", self.round))
        private_key = X25519PrivateKey.from_private_bytes(self._key)
        for name in sorted(keys):
            if name != self.name:
                shared = self._agree(private_key, keys[name].mask, b"mask")
                add_mask(masked, shared, negative=name < self.name)
        return masked

    def reveal(
        self,
        survivors: Collection[str],
        dropped: Collection[str],
        contributors: Mapping[str, Collection[str]],
    ) -> Revealed:
        """Fourth message: shares that unmask the sums of the survivors and nothing else.

        Parameters
        ----------
        survivors, dropped
            Clients that answered, and those that sent shares and did not.
        contributors
            Group → survivors whose vectors are not 0 there. Of a group with fewer than :data:`MIN_CONTRIBUTORS`
            nothing is revealed.

        Raises
        ------
        TooFewContributorsError
            If fewer clients than the threshold answered.
        FederationError
            If a client is listed as both, or if an earlier call listed other clients: with both shares of a client the
            server could read its vector.
        """
        answered, missing = frozenset(survivors), frozenset(dropped)
        if answered & missing or self.name in missing:
            raise FederationError("the server lists a client both as answered and as dropped out")
        if len(answered) < self._threshold:
            raise TooFewContributorsError(
                f"{len(answered)} of {self._threshold} clients needed for a sum answered"
            )
        groups = frozenset(g for g in self.groups if enough(contributors.get(g, ()), answered))
        if self._revealed not in (None, (answered, missing, groups)):
            raise FederationError("the server gives a second list of dropped clients")
        self._revealed = (answered, missing, groups)
        seeds = {group: {name: self._shares[name][0][group] for name in sorted(answered)} for group in groups}
        return Revealed(seeds, {name: self._shares[name][1] for name in sorted(missing)})

    def _by_group(self, shares: Sequence[Share]) -> tuple[dict[str, Share], Share]:
        """Shares of one client: those of its self-masks by group, and that of its key."""
        return dict(zip(self.groups, shares[:-1], strict=True)), shares[-1]

    def _agree(self, private_key: X25519PrivateKey, public_key: bytes, purpose: bytes) -> bytes:
        return _derive(
            private_key.exchange(X25519PublicKey.from_public_bytes(public_key)), purpose, self.round
        )

    def _associated_data(self, sender: str, receiver: str) -> bytes:
        """Associated data of encrypted shares, which binds them to round, sender and receiver."""
        return f"{self.round}/{len(sender)}/{sender}/{receiver}".encode()


@dataclass
class MaskedSum:
    """The server's side of one round: adds masked vectors, and unmasks the sum.

    Parameters
    ----------
    size, spans
        Length of the vectors, and their groups.
    keys
        Client → public keys, of all clients that sent shares.
    threshold
        Fewest clients that have to answer.
    round_
        Number of the round.
    """

    size: int
    spans: Spans
    keys: Mapping[str, PublicKeys]
    threshold: int
    round_: int
    total: Ring = field(init=False)
    survivors: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.size, np.uint64)

    def add(self, client: str, vector: Ring) -> None:
        """Add a masked vector.

        Raises
        ------
        FederationError
            If the client sent no shares or answered before, or the vector is not of ring numbers: an unmasked vector
            must not be processed.
        """
        if client not in self.keys or client in self.survivors:
            raise FederationError(f"{client} has no masks in this round, or has answered before")
        if vector.dtype != np.uint64 or vector.shape != (self.size,):
            raise FederationError(
                f"{client} sent {vector.dtype} {vector.shape}, not a masked vector of {self.size}"
            )
        self.survivors.append(client)
        self.total += vector

    @property
    def dropped(self) -> list[str]:
        """Clients that sent shares and did not answer."""
        return sorted(set(self.keys) - set(self.survivors))

    def unmasked(self, revealed: Sequence[Revealed]) -> NDArray[np.int64]:
        """``[P]`` exact sum of the survivors' vectors; 0 in groups of which nothing was revealed.

        Raises
        ------
        TooFewContributorsError
            If fewer than ``threshold`` clients revealed their shares.
        FederationError
            If the shares do not belong together.
        """
        if len(revealed) < self.threshold:
            raise TooFewContributorsError(
                f"{len(revealed)} clients are left to unmask a sum, {self.threshold} are needed",
                fix="lower secure_aggregation.threshold, or let more clients take part",
            )
        total = self.total.copy()
        open_groups = [group for group in _groups(self.spans) if all(group in r.seeds for r in revealed)]
        for group in open_groups:
            for name in self.survivors:
                seed = self._joined([r.seeds[group][name] for r in revealed])
                key = _derive(seed, b"self", self.round_)
                add_mask_of_group(total, self.spans, group, key, negative=True)
        for name in self.dropped:
            private_key = X25519PrivateKey.from_private_bytes(self._joined([r.keys[name] for r in revealed]))
            for other in self.survivors:
                shared = private_key.exchange(X25519PublicKey.from_public_bytes(self.keys[other].mask))
                # The survivor added the mask for a later name and subtracted it for an earlier one.
                add_mask(total, _derive(shared, b"mask", self.round_), negative=name > other)
        for group, span in self.spans:
            if group not in open_groups:
                total[span] = 0
        return total.view(np.int64)

    def _joined(self, shares: Sequence[Share]) -> bytes:
        try:
            return join(shares[: self.threshold], 32)
        except ValueError as error:
            raise FederationError(f"a secret cannot be reconstructed: {error}") from None


class MaskedClients(Protocol):
    """The clients of a round that exchanged keys, wherever they are: the other side of :class:`MaskedSum`.

    Attributes
    ----------
    keys
        Client → public keys.
    threshold
        Fewest clients that have to answer, with which they have shared their secrets.
    """

    keys: dict[str, PublicKeys]
    threshold: int

    def reveal(
        self, survivors: Sequence[str], dropped: Sequence[str], contributors: Mapping[str, Collection[str]]
    ) -> list[Revealed]:
        """The shares that the surviving clients reveal (:meth:`Participant.reveal`)."""
        ...


class SimulatedClients:
    """All clients of a round in one process: the simulated other side of :class:`MaskedSum`.

    Keys and encrypted shares go through the server, as in the protocol; the secrets of clients stay in this object.

    Parameters
    ----------
    draws
        Client → its source of random bytes for the round.
    round_
        Number of the round.
    spans
        Groups of the vectors.
    threshold
        Fewest clients that have to answer.
    """

    def __init__(self, draws: Mapping[str, Draw], round_: int, spans: Spans, threshold: int) -> None:
        self.threshold = threshold
        self._participants = {n: Participant(n, round_, spans, draws[n]) for n in sorted(draws)}
        self.keys = {name: participant.advertise() for name, participant in self._participants.items()}
        sealed = {
            name: participant.share(self.keys, threshold) for name, participant in self._participants.items()
        }
        for name, participant in self._participants.items():
            participant.receive(
                {sender: box[name] for sender, box in sealed.items() if name in box}, self.keys
            )

    def masked(self, client: str, vector: Ring) -> Ring:
        """The masked vector that this client sends."""
        return self._participants[client].masked(vector, self.keys)

    def reveal(
        self, survivors: Sequence[str], dropped: Sequence[str], contributors: Mapping[str, Collection[str]]
    ) -> list[Revealed]:
        """The shares that the surviving clients reveal."""
        return [
            self._participants[name].reveal(survivors, dropped, contributors) for name in sorted(survivors)
        ]


def threshold_of(share: float, clients: int) -> int:
    """Threshold t of n clients: the given share of them, always more than half and enough to hide a summand."""
    return max(int(np.ceil(share * clients - 1e-9)), clients // 2 + 1, MIN_CONTRIBUTORS)


def enough(contributors: Collection[str], answered: Collection[str]) -> bool:
    """Whether so many of those who answered contribute to a sum that it may be revealed."""
    return len(set(contributors) & set(answered)) >= MIN_CONTRIBUTORS


def add_mask(vector: Ring, key: bytes, *, negative: bool = False) -> None:
    """Add (or subtract) the keystream of a key, in place, modulo 2^64."""
    _add_stream(vector, [slice(0, len(vector))], key, negative=negative)


def add_mask_of_group(vector: Ring, spans: Spans, group: str, key: bytes, *, negative: bool = False) -> None:
    """:func:`add_mask` to the coordinates of one group."""
    _add_stream(vector, [span for name, span in spans if name == group], key, negative=negative)


def _add_stream(vector: Ring, spans: Sequence[slice], key: bytes, *, negative: bool) -> None:
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    for start, stop in _chunks(spans):
        part = vector[start:stop]
        mask = np.frombuffer(stream.update(bytes(8 * len(part))), "<u8")
        if negative:
            part -= mask
        else:
            part += mask


def _chunks(spans: Sequence[slice]) -> Iterator[tuple[int, int]]:
    for span in spans:
        for start in range(span.start, span.stop, CHUNK):
            yield start, min(start + CHUNK, span.stop)


def _groups(spans: Spans) -> tuple[str, ...]:
    """Names of the groups, in order of appearance."""
    return tuple(dict.fromkeys(group for group, _ in spans))


def _derive(secret: bytes, purpose: bytes, round_: int) -> bytes:
    """A key of 32 bytes for one purpose in one round; each key is used for one keystream only."""
    info = b"equipoise/" + purpose + b"/" + str(round_).encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)
