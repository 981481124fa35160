"""The server of a federation of hospitals: join, sums, targets, rounds, and the end.

It is given a job and a transport and sees manifests, sums and updates. What needs the patients of several sites in one
place does not exist here: pooled and local baselines, the costs of server aggregations, predictions.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.datasets.atomic_io import atomic_path, read_json, write_json
from equipoise.platform.errors import FederationError
from equipoise.platform.federation.clients.validation import monitored
from equipoise.platform.federation.engine import Federation, build_strategy
from equipoise.platform.federation.messages import ClientManifest
from equipoise.platform.federation.privacy.combined import privacy_of
from equipoise.platform.federation.privacy.record_level import check_supported
from equipoise.platform.federation.remote.backend import MaskedSites, RemoteBackend
from equipoise.platform.federation.remote.exchange import Exchange, Transport, as_array, from_array
from equipoise.platform.federation.remote.job import RemoteJob
from equipoise.platform.federation.remote.sums import LostSiteError, RemoteStatistics
from equipoise.platform.federation.remote.targets import fit_of
from equipoise.platform.federation.remote.versions import versions
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.server.checkpoint import identity_of
from equipoise.platform.federation.vector import Schema
from equipoise.platform.fingerprints import content_hash
from equipoise.platform.training.start import initial_model, training_record
from equipoise.platform.training.targets import Targets

log = logging.getLogger("equipoise")

#: What a report of a simulation has and this one cannot have.
IMPOSSIBLE = (
    "pooled and local baselines: they need the patients in one place, or a second training at every site",
    "predictions and metrics: each site has its own in its folder",
    "a check for patients of two sites: their keys do not leave the sites",
)
#: Fewest sites of a federation.
MIN_SITES = 2


@dataclass
class Joined:
    """The sites that take part.

    Parameters
    ----------
    versions
        Site → package → version.
    described
        Site → description of its rows, of sites with enough patients to send sums.
    lost
        Site → why it does not take part.
    """

    versions: dict[str, dict[str, str]]
    described: dict[str, dict[str, Any]]
    lost: dict[str, str]

    def lose(self, site: str, reason: str) -> None:
        """Go on without a site."""
        log.warning("site %s takes no part: %s", site, reason.partition("\n")[0])
        self.lost[site] = reason
        self.versions.pop(site, None)
        self.described.pop(site, None)
        if len(self.versions) < MIN_SITES:
            reasons = "; ".join(
                f"{name}: {why.partition(chr(10))[0]}" for name, why in sorted(self.lost.items())
            )
            raise FederationError(
                f"{len(self.versions)} of {len(self.versions) + len(self.lost)} sites can take part ({reasons})",
                fix="each site's log has its error; start the job again when two or more sites are ready",
            )


def run_remote(job: RemoteJob, transport: Transport, folder: Path) -> FederationResult:
    """Train with the sites of a transport, or continue where a federation in the folder stopped.

    Parameters
    ----------
    job
        What server and sites agree on.
    transport
        Reaches the sites.
    folder
        Checkpoints, audit log and result.

    Raises
    ------
    FederationError
        If fewer than two sites can take part, versions differ, or as for
        :meth:`~equipoise.platform.federation.engine.Federation.run`.
    """
    params, recipe = job.params, job.recipe
    exchange = Exchange(transport, job.identifier)
    joined = join(job, exchange)
    targets = remote_targets(job, exchange, joined)
    factory = partial(initial_model, recipe, targets, seed=recipe.seed)
    model = factory()
    schema = Schema.of(model, [head.name for head in targets.heads])
    initial = schema.flatten(model)
    if params.privacy.record_level is not None:
        methods = {"weighting": recipe.balancing.weighting, "aggregation": recipe.balancing.aggregation}
        check_supported(model, targets.heads, **methods)
    manifests = start(exchange, joined, targets, schema)
    privacy = privacy_of(
        params,
        schema,
        recipe.seed,
        secret=_secret(folder) if params.privacy.differential else None,
        masked_clients=partial(MaskedSites, exchange),
    )
    strategy = build_strategy(params)
    backend = RemoteBackend(exchange, manifests)
    federation = Federation(
        schema,
        initial,
        backend,
        params,
        seed=recipe.seed,
        lr=params.local.lr or recipe.training.lr,
        strategy=strategy,
        privacy=privacy,
        folder=folder / "rounds",
        identity=identity_of(params, schema, initial, privacy, recipe.seed)
        | {
            "training": training_record(recipe.training),
            "balancing": recipe.balancing.model_dump(mode="json"),
            "targets": content_hash([json.dumps(targets.training_json())]),
            "clients": {site: manifest.n for site, manifest in manifests.items()},
        },
        on_round=lambda row: log.info("federate %s: round %d of %s", job.name, row["round"], params.rounds),
    )
    if not params.privacy.differential and strategy.personal_mask(schema) is None:

        def validate(vector: np.ndarray) -> dict[str, float]:
            sites = set(manifests) - federation.server.validator.excluded
            answers = exchange.ask("validate", sites, arrays={"weights": vector})
            known = [answer.header["losses"] for answer in answers.values() if not answer.reason]
            return monitored(known, targets, recipe.training)

        federation.validate = validate
    result = federation.run()
    predicted = finish(exchange, backend, result)
    write_result(folder, job, targets, result, joined, predicted)
    return replace(result, factory=factory)


def join(job: RemoteJob, exchange: Exchange) -> Joined:
    """Send the job to all sites; they read their data.

    Raises
    ------
    FederationError
        If fewer than two sites can take part, or one has another version of Equipoise.
    """
    sites = sorted(exchange.transport.sites)
    answers = exchange.ask("join", sites, arrays={"job": as_array(job.model_dump(mode="json"))})
    joined = Joined({site: {} for site in sites}, {}, {})
    here = versions()
    for site, answer in answers.items():
        if answer.reason:
            joined.lose(site, answer.reason)
            continue
        joined.versions[site] = theirs = {str(k): str(v) for k, v in answer.header["versions"].items()}
        if theirs.get("equipoise") != here["equipoise"]:
            raise FederationError(
                f"site {site} has Equipoise {theirs.get('equipoise')}, the server {here['equipoise']}",
                fix="install the same version at the server and all sites",
            )
        if theirs != here:
            log.warning(
                "site %s has other versions than the server: %s; results may differ in rounding", site, theirs
            )
        if "described" in answer.arrays:
            joined.described[site] = from_array(answer.arrays["described"])
    return joined


def remote_targets(job: RemoteJob, exchange: Exchange, joined: Joined) -> Targets:
    """Targets from the sums of all sites with enough patients; started again without a site that fails.

    Raises
    ------
    FederationError
        If no site has enough patients, or fewer than two sites are left.
    """
    fit = fit_of(job)
    while True:
        if not joined.described:
            raise FederationError(
                f"no site has {job.params.min_n} training patients, so that none sends sums",
                fix="lower federation.min_n, or let larger sites take part",
            )
        try:
            return fit(RemoteStatistics(exchange, joined.described))
        except LostSiteError as error:
            for site, reason in error.sites.items():
                joined.lose(site, reason)


def start(exchange: Exchange, joined: Joined, targets: Targets, schema: Schema) -> dict[str, ClientManifest]:
    """Send the targets; the sites build the model and declare their patients."""
    arrays = {"targets": as_array(targets.to_json())}
    answers = exchange.ask("start", joined.versions, {"schema": schema.hash}, arrays)
    manifests = {}
    for site, answer in answers.items():
        if answer.reason:
            joined.lose(site, answer.reason)
        else:
            manifests[site] = replace(ClientManifest.from_json(answer.header["manifest"]), client=site)
    return manifests


def finish(exchange: Exchange, backend: RemoteBackend, result: FederationResult) -> dict[str, int]:
    """Send the final weights; every site predicts its patients at home. Site → number of predicted patients."""
    answers = exchange.ask("finish", result.manifests, {"states": backend.states}, {"weights": result.vector})
    for site, answer in answers.items():
        if answer.reason:
            log.warning("site %s has no predictions: %s", site, answer.reason.partition("\n")[0])
    return {site: int(answer.header["predicted"]) for site, answer in answers.items() if not answer.reason}


def write_result(
    folder: Path,
    job: RemoteJob,
    targets: Targets,
    result: FederationResult,
    joined: Joined,
    predicted: Mapping[str, int],
) -> None:
    """Write the global model and what the server knows of its training."""
    from safetensors.numpy import save_file

    named = {n: np.ascontiguousarray(a) for n, a in result.schema.named(result.vector).items()}
    with atomic_path(folder / "model.safetensors") as partial_file:
        save_file(named, partial_file)
    write_json(folder / "targets.json", targets.to_json())
    write_json(
        folder / "result.json",
        {
            "study": job.name,
            "synthetic": job.synthetic,
            "job": job.model_dump(mode="json"),
            "backend": result.backend,
            "history": list(result.history),
            "kept_round": result.kept_round,
            "sites": {site: manifest.to_json() for site, manifest in result.manifests.items()},
            "traffic": result.audit_log.totals(),
            "excluded": sorted(result.excluded),
            "left_out": joined.lost,
            "versions": {"server": versions(), **joined.versions},
            "predicted": dict(predicted),
            "not_possible": list(IMPOSSIBLE),
        },
    )


def _secret(folder: Path) -> int:
    """Seed of the server's noise, kept beside its checkpoints."""
    path = folder / "secret.json"
    if (known := read_json(path)) is None:
        folder.mkdir(parents=True, exist_ok=True)
        known = {"seed": secrets.randbits(128)}
        write_json(path, known)
        path.chmod(0o600)
    return int(known["seed"])
