r"""Sums that the server cannot take apart (Bonawitz et al., CCS 2017, "Practical secure aggregation").

Vectors are whole numbers of the ring Z_2^64, the engine's fixed point. Client u sends

.. math:: y_u = x_u + \mathrm{PRG}(b_u) + \sum_{v > u} \mathrm{PRG}(s_{uv}) - \sum_{v < u} \mathrm{PRG}(s_{uv})
          \pmod{2^{64}},

with s_uv agreed by X25519 and HKDF, and the keystream of ChaCha20 as PRG. In the sum the pairwise masks cancel,
whatever the order. Every client has shared b_u and the key behind its s_uv among all (Shamir, t of n): for those
who answered the others reveal shares of b_u, for those who dropped out shares of the key, and never both, since
together they would unmask one client. Sums are exact, and equal those of an unmasked federation bit for bit.

The server follows the protocol but is curious, as are up to t - 1 clients. Not here: the signatures and the
consistency check by which the paper resists a server that lies about who dropped out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.privacy.shamir import WIDTH, Draw, Share, join, split

Ring = NDArray[np.uint64]

#: Numbers of a mask that are made at once.
CHUNK = 1 << 16
#: A sum of fewer vectors says too much about each.
FEWEST = 3


@dataclass(frozen=True)
class PublicKeys:
    """What a client publishes: one key to be written to, one that masks are agreed with."""

    box: bytes
    mask: bytes


@dataclass(frozen=True)
class Revealed:
    """Shares that one survivor gives the server: of self-masks of survivors, of mask keys of dropped clients."""

    seeds: Mapping[str, Share]
    keys: Mapping[str, Share]


class Participant:
    """A client's side of one round.

    Parameters
    ----------
    name, round_
        Whose and which.
    draw
        Random bytes: ``os.urandom``, in a simulation those of a generator seeded for (client, round).
    """

    def __init__(self, name: str, round_: int, draw: Draw) -> None:
        self.name = name
        self.round = round_
        self._draw = draw
        self._box = X25519PrivateKey.from_private_bytes(draw(32))
        self._key = draw(32)
        self._seed = draw(32)
        self._shares: dict[str, tuple[Share, Share]] = {}
        self._threshold = 0
        self._told: tuple[frozenset[str], frozenset[str]] | None = None

    def advertise(self) -> PublicKeys:
        """First message."""
        mask = X25519PrivateKey.from_private_bytes(self._key)
        return PublicKeys(self._box.public_key().public_bytes_raw(), mask.public_key().public_bytes_raw())

    def share(self, keys: Mapping[str, PublicKeys], threshold: int) -> dict[str, bytes]:
        """Second message: shares of both secrets for every client, each readable by that client only.

        Raises
        ------
        FederationError
            If so few shares would be enough that two halves of the clients could tell different stories.
        """
        names = sorted(keys)
        if len(names) < FEWEST or not len(names) // 2 < threshold <= len(names) or self.name not in keys:
            raise FederationError(
                f"secure aggregation of {len(names)} clients with a threshold of {threshold}",
                fix=f"let {FEWEST} or more clients take part, and more than half of them be enough",
            )
        self._threshold = threshold
        seeds = split(self._seed, threshold, len(names), self._draw)
        secrets = split(self._key, threshold, len(names), self._draw)
        sealed = {}
        for name, seed, secret in zip(names, seeds, secrets, strict=True):
            if name == self.name:
                self._shares[name] = (seed, secret)
            else:
                values = (seed.value.to_bytes(WIDTH, "big"), secret.value.to_bytes(WIDTH, "big"))
                text = b"".join([seed.place.to_bytes(4, "big"), *values])
                nonce = self._draw(12)
                box = ChaCha20Poly1305(self._agree(self._box, keys[name].box, b"box"))
                sealed[name] = nonce + box.encrypt(nonce, text, self._bound(self.name, name))
        return sealed

    def receive(self, sealed: Mapping[str, bytes], keys: Mapping[str, PublicKeys]) -> None:
        """Keep the shares that others sent through the server.

        Raises
        ------
        FederationError
            If one was changed on its way or is somebody else's.
        """
        for sender, message in sealed.items():
            box = ChaCha20Poly1305(self._agree(self._box, keys[sender].box, b"box"))
            try:
                text = box.decrypt(message[:12], message[12:], self._bound(sender, self.name))
            except InvalidTag:
                raise FederationError(
                    f"shares from {sender} for {self.name} were changed on their way"
                ) from None
            place = int.from_bytes(text[:4], "big")
            values = int.from_bytes(text[4 : 4 + WIDTH], "big"), int.from_bytes(text[4 + WIDTH :], "big")
            self._shares[sender] = (Share(place, values[0]), Share(place, values[1]))

    def masked(self, vector: Ring, keys: Mapping[str, PublicKeys]) -> Ring:
        """Third message: the vector under its own and all pairwise masks."""
        found = np.array(vector, dtype=np.uint64)
        add_mask(found, self._seed_key())
        own = X25519PrivateKey.from_private_bytes(self._key)
        for name in sorted(keys):
            if name != self.name:
                shared = self._agree(own, keys[name].mask, b"mask")
                add_mask(found, shared, negative=name < self.name)
        return found

    def reveal(self, survivors: Collection[str], dropped: Collection[str]) -> Revealed:
        """Fourth message: shares that unmask the sum of the survivors and nothing else.

        Raises
        ------
        FederationError
            If a client is said to be both, if too few survived, or if another story was told before: with both
            shares of a client the server could read its vector.
        """
        story = (frozenset(survivors), frozenset(dropped))
        if story[0] & story[1] or self.name in story[1]:
            raise FederationError("the server says of a client that it answered and that it dropped out")
        if len(story[0]) < self._threshold:
            raise FederationError(f"{len(story[0])} of {self._threshold} clients needed for a sum answered")
        if self._told not in (None, story):
            raise FederationError("the server tells a second story about who dropped out")
        self._told = story
        seeds = {name: self._shares[name][0] for name in sorted(story[0])}
        return Revealed(seeds, {name: self._shares[name][1] for name in sorted(story[1])})

    def _seed_key(self) -> bytes:
        return _derive(self._seed, b"self", self.round)

    def _agree(self, own: X25519PrivateKey, other: bytes, purpose: bytes) -> bytes:
        return _derive(own.exchange(X25519PublicKey.from_public_bytes(other)), purpose, self.round)

    def _bound(self, sender: str, receiver: str) -> bytes:
        """What sealed shares are tied to, so that they cannot be passed off as others."""
        return f"{self.round}/{len(sender)}/{sender}/{receiver}".encode()


@dataclass
class MaskedSum:
    """The server's side of one round: adds masked vectors, and unmasks the sum.

    Parameters
    ----------
    size
        Length of the vectors.
    keys
        Client → public keys, of all who shared.
    threshold
        Clients that have to survive.
    round_
        Which.
    """

    size: int
    keys: Mapping[str, PublicKeys]
    threshold: int
    round_: int
    total: Ring = field(init=False)
    survivors: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.size, np.uint64)

    def add(self, client: str, vector: Ring) -> None:
        """Count a masked vector in.

        Raises
        ------
        FederationError
            If the client shared nothing or came before, or the vector is not one of the ring: what is not
            masked must not be looked at.
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
        """Who shared and did not answer."""
        return sorted(set(self.keys) - set(self.survivors))

    def unmasked(self, revealed: Sequence[Revealed]) -> NDArray[np.int64]:
        """``[P]`` exact sum of the survivors' vectors.

        Raises
        ------
        FederationError
            If fewer than ``threshold`` clients revealed their shares, or the shares do not belong together.
        """
        if len(revealed) < self.threshold or len(self.survivors) < FEWEST - 1:
            raise FederationError(
                f"{len(revealed)} clients are left to unmask a sum, {self.threshold} are needed",
                fix="lower secure_aggregation.threshold, or let more clients take part",
            )
        total = self.total.copy()
        for name in self.survivors:
            seed = self._joined([r.seeds[name] for r in revealed])
            add_mask(total, _derive(seed, b"self", self.round_), negative=True)
        for name in self.dropped:
            key = X25519PrivateKey.from_private_bytes(self._joined([r.keys[name] for r in revealed]))
            for other in self.survivors:
                shared = key.exchange(X25519PublicKey.from_public_bytes(self.keys[other].mask))
                # The survivor added it for a later name and took it away for an earlier one.
                add_mask(total, _derive(shared, b"mask", self.round_), negative=name > other)
        return total.view(np.int64)

    def _joined(self, shares: Sequence[Share]) -> bytes:
        try:
            return join(shares[: self.threshold], 32)
        except ValueError as error:
            raise FederationError(f"a secret cannot be put together: {error}") from None


class Committee:
    """All clients of a round in one process: the simulated other side of :class:`MaskedSum`.

    Keys and sealed shares go through the server, as in the protocol; what stays at clients stays in here.

    Parameters
    ----------
    draws
        Client → its source of random bytes for the round.
    round_
        Which.
    threshold
        Clients that have to survive.
    """

    def __init__(self, draws: Mapping[str, Draw], round_: int, threshold: int) -> None:
        self._members = {name: Participant(name, round_, draws[name]) for name in sorted(draws)}
        self.keys = {name: member.advertise() for name, member in self._members.items()}
        sealed = {name: member.share(self.keys, threshold) for name, member in self._members.items()}
        for name, member in self._members.items():
            member.receive({sender: box[name] for sender, box in sealed.items() if name in box}, self.keys)

    def masked(self, client: str, vector: Ring) -> Ring:
        """What this client sends for its vector."""
        return self._members[client].masked(vector, self.keys)

    def reveal(self, survivors: Sequence[str], dropped: Sequence[str]) -> list[Revealed]:
        """What the survivors answer to the server's last question."""
        return [self._members[name].reveal(survivors, dropped) for name in sorted(survivors)]


def threshold_of(share: float, clients: int) -> int:
    """t of n clients: the share of them, and always more than half."""
    return max(int(np.ceil(share * clients - 1e-9)), clients // 2 + 1, 2)


def add_mask(vector: Ring, key: bytes, *, negative: bool = False) -> None:
    """Add (or take away) the keystream of a key, in place, modulo 2^64."""
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    for start in range(0, len(vector), CHUNK):
        part = vector[start : start + CHUNK]
        mask = np.frombuffer(stream.update(bytes(8 * len(part))), "<u8")
        if negative:
            part -= mask
        else:
            part += mask


def _derive(secret: bytes, purpose: bytes, round_: int) -> bytes:
    """32 bytes of key for one purpose in one round; a key is used for one keystream only."""
    info = b"equipoise/" + purpose + b"/" + str(round_).encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)
