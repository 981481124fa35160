"""What the workers and sites of a study's federation are given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from equipoise.platform.federation.clients.runner import ClientSetup
from equipoise.platform.federation.clients.study_trainer import StudyTrainer, plain_steps
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.privacy.mechanism import PrivacyMechanism
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.targets import Targets


def client_setup(
    factory: Callable[[], nn.Module],
    targets: Targets,
    params: FederationParams,
    training: TrainingParams,
    balancing: BalancingParams,
    strategy: Strategy,
    privacy: PrivacyMechanism,
) -> ClientSetup:
    """The trainer of a study's model with its strategy and privacy mechanism.

    Parameters
    ----------
    factory
        Makes a model; its initial weights are not used.
    targets
        Tasks, scalers, tables: the same at every client.
    params, training, balancing
        Settings; nothing of ``params`` is left open.
    strategy, privacy
        Clients use their halves.
    """
    trainer = partial(
        StudyTrainer,
        factory=factory,
        targets=targets,
        local=params.local,
        training=training,
        balancing=balancing,
        steps=privacy.steps or plain_steps,
        rounds=params.rounds,
    )
    return ClientSetup(trainer, strategy, privacy, params.local, training.threads, params.min_n)
