"""A backend of the engine whose clients are sites: it carries requests, and knows which state of a site is accepted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.messages import ClientManifest, Reply, TrainRequest
from equipoise.platform.federation.privacy.secure_aggregation import PublicKeys, Revealed, threshold_of
from equipoise.platform.federation.privacy.shamir import Share
from equipoise.platform.federation.remote.exchange import Exchange


class RemoteBackend:
    """Sites behind an exchange.

    A site keeps its state and names it by the request that made it. The server's checkpoint holds these names only, and
    a resumed federation asks the sites for them.

    Parameters
    ----------
    exchange
        Asks the sites.
    manifests
        Site → its manifest.
    """

    def __init__(self, exchange: Exchange, manifests: Mapping[str, ClientManifest]) -> None:
        self.name, self.workers = exchange.transport.name, len(manifests)
        self.exchange, self.manifests = exchange, dict(sorted(manifests.items()))
        self.states: dict[str, str] = {}
        self._queued: list[tuple[np.ndarray, str, str]] = []
        self._open: dict[str, int] = {}

    def join(self) -> dict[str, ClientManifest]:
        """Client → its manifest."""
        return self.manifests

    def publish(self, request: TrainRequest) -> np.ndarray:
        """The request as bytes."""
        return np.frombuffer(request.to_bytes(), np.uint8)

    def send(self, published: np.ndarray, client: str, request_id: str) -> None:
        """Queue the request: those of one round leave together."""
        self._queued.append((published, client, request_id))

    def receive(self, clients: Collection[str]) -> Reply:
        """The next reply of any of these clients."""
        self._flush()
        site, answer = self.exchange.receive({(client, self._open[client]) for client in clients})
        del self._open[site]
        if answer.reason:
            return Reply(site, b"", reason=answer.reason)
        update = answer.arrays.get("update", np.empty(0, np.uint8))
        return Reply(site, update.tobytes(), str(answer.header.get("state", "")))

    def commit(self, reply: Reply) -> None:
        """From now on the site trains from the state that it had after this reply."""
        if reply.state:
            self.states[reply.client] = reply.state

    def client_states(self) -> dict[str, bytes]:
        """Client → name of its state, which stays at the site."""
        return {client: state.encode() for client, state in self.states.items()}

    def restore_states(self, states: Mapping[str, bytes]) -> None:
        """Ask the sites whether they still have the states of a checkpoint.

        Raises
        ------
        FederationError
            If one has not: it would go on from another state than the server.
        """
        named = {client: state.decode() for client, state in states.items()}
        answers = self.exchange.ask("states", named, {"states": named})
        for site, answer in answers.items():
            if answer.reason or not answer.header.get("known"):
                raise FederationError(
                    f"site {site} does not have the state {named[site]} of the checkpoint"
                    + (f" ({answer.reason.partition(chr(10))[0]})" if answer.reason else ""),
                    fix="restore the site's folder, or remove the server's folder to start again",
                )
        self.states = named

    def close(self) -> None:
        """Drop requests that were not sent."""
        self._queued.clear()

    def _flush(self) -> None:
        while self._queued:
            published = self._queued[0][0]
            together = [item for item in self._queued if item[0] is published]
            self._queued = [item for item in self._queued if item[0] is not published]
            clients = {
                client: {"request_id": request_id, "state": self.states.get(client, "")}
                for _, client, request_id in together
            }
            number = self.exchange.send(
                "train", sorted(clients), {"clients": clients}, {"request": published}
            )
            self._open |= dict.fromkeys(clients, number)


class MaskedSites:
    """The sites of a round that exchanged keys for secure aggregation, asked through the server.

    Parameters
    ----------
    exchange
        Asks the sites.
    round_
        Number of the round.
    clients
        Participants.
    share
        Share of them that has to answer.

    Raises
    ------
    FederationError
        If too few exchange keys.
    """

    def __init__(self, exchange: Exchange, round_: int, clients: Sequence[str], share: float) -> None:
        self._exchange, self._round = exchange, round_
        advertised = exchange.ask("keys", clients, {"round": round_})
        keys = {
            site: [str(answer.header["box"]), str(answer.header["mask"])]
            for site, answer in advertised.items()
            if not answer.reason
        }
        self.threshold = threshold_of(share, len(keys))
        reasons = {site: answer.reason for site, answer in advertised.items() if answer.reason}
        shared = {}
        if len(keys) >= self.threshold:
            shared = exchange.ask(
                "shares", keys, {"round": round_, "keys": keys, "threshold": self.threshold}
            )
        reasons |= {site: answer.reason for site, answer in shared.items() if answer.reason}
        self._sealed = {site: dict(answer.arrays) for site, answer in shared.items() if not answer.reason}
        if len(self._sealed) < self.threshold:
            why = "; ".join(
                f"{site}: {reason.partition(chr(10))[0]}" for site, reason in sorted(reasons.items())
            )
            raise FederationError(
                f"{len(self._sealed)} of {len(clients)} sites exchanged keys, {self.threshold} are needed "
                f"({why or 'no others took part'})",
                where=f"round {round_ + 1}",
                fix="start the federation again when the sites can be reached: it resumes",
            )
        self.keys = {
            site: PublicKeys(bytes.fromhex(keys[site][0]), bytes.fromhex(keys[site][1]))
            for site in self._sealed
        }

    def reveal(
        self, survivors: Sequence[str], dropped: Sequence[str], contributors: Mapping[str, Collection[str]]
    ) -> list[Revealed]:
        """The shares that the surviving sites reveal; each gets those that the others have sealed for it."""
        senders = sorted(self._sealed)
        header = {
            "round": self._round,
            "survivors": sorted(survivors),
            "dropped": sorted(dropped),
            "contributors": {group: sorted(sites) for group, sites in contributors.items()},
            "senders": senders,
        }
        arrays = {
            site: np.concatenate([self._sealed[sender][site] for sender in senders if sender != site])
            for site in sorted(survivors)
        }
        answers = self._exchange.ask("reveal", survivors, header, arrays)
        return [_revealed(answer.header) for answer in answers.values() if not answer.reason]


def revealed_header(revealed: Revealed) -> dict[str, object]:
    """Shares as plain data."""
    return {
        "seeds": {
            group: {name: [share.x, hex(share.value)] for name, share in shares.items()}
            for group, shares in revealed.seeds.items()
        },
        "keys": {name: [share.x, hex(share.value)] for name, share in revealed.keys.items()},
    }


def _revealed(header: Mapping[str, Mapping[str, dict[str, list[str]]]]) -> Revealed:
    def share(pair: Sequence[str]) -> Share:
        return Share(int(pair[0]), int(pair[1], 16))

    seeds = {
        group: {name: share(pair) for name, pair in shares.items()}
        for group, shares in header["seeds"].items()
    }
    return Revealed(seeds, {name: share(pair) for name, pair in header["keys"].items()})  # type: ignore[arg-type]
