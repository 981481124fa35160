"""The federation of a job in one process: what sites elsewhere must equal bit for bit."""

from collections.abc import Mapping

from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.remote.job import RemoteJob
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.simulation.fold import validate_in_rounds
from equipoise.platform.federation.simulation.simulation import from_recipe
from equipoise.platform.federation.standardisation import federated_targets


def simulated(job: RemoteJob, clients: Mapping[str, ClientData]) -> FederationResult:
    """The job with these patients, the way ``equipoise federate`` runs a study."""
    recipe = job.recipe
    targets = federated_targets(
        job.tasks,
        {name: client.train for name, client in clients.items()},
        class_weights=recipe.training.class_weights,
        scaling=recipe.training.target_scaling,
        tables=recipe.tables,
        min_n=job.params.min_n,
    )
    params = job.federation.model_copy(update={"backend": "inline"})
    simulation = from_recipe(recipe, targets, clients, params, seed=recipe.seed)
    validate_in_rounds(simulation, recipe.training)
    return simulation.run()
