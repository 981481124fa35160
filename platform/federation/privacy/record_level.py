r"""Differential privacy of patients within a client: DP-SGD (Abadi et al., CCS 2016, arXiv 1607.00133, algorithm 1).

The unit is the patient with all slides and tables. In a step every patient takes part with probability q; the
gradient of each patient, of the sum of the losses of the patient's labelled tasks, is scaled down to norm C:

.. math:: g = \frac{1}{q n} \Big( \sum_{i \in \text{sample}} \min(1, C / \|g_i\|) g_i + \mathcal N(0, (z C)^2 I) \Big)

Processing of g (momentum, a proximal term, SCAFFOLD's correction, the step of the server) costs no further privacy.
The denominator is q n whatever the sample, and a step with an empty sample consists of noise. Every step is
accounted for before it is executed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.models.balancing.protocol import StepContext
from equipoise.models.base import reads_states
from equipoise.models.batch import CaseBatch, TaskHead
from equipoise.models.gptomic.protocol import BranchedModel
from equipoise.models.losses import LossSums, TaskLosses
from equipoise.platform.errors import StudyError
from equipoise.platform.federation.clients.study_trainer import StudyJob
from equipoise.platform.federation.participation import sampling_plan
from equipoise.platform.federation.privacy.accountant import Accountant, SampledGaussian
from equipoise.platform.federation.privacy.compatibility import record_level_refusals
from equipoise.platform.federation.privacy.noise import noise_source
from equipoise.platform.federation.privacy.params import RecordLevelParams
from equipoise.platform.training.batches import collate, draw_tiles

log = logging.getLogger(__name__)

#: How gradients of single patients are computed. Both give the same numbers.
Method = Literal["vmap", "loop"]

#: Random stream of the samples of patients and of the noise.
PRIVATE = 0xD9
#: Layers that mix the patients of a batch.
MIXING = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)


def check_supported(
    model: nn.Module, heads: Sequence[TaskHead], *, weighting: str = "equal", aggregation: str = "none"
) -> None:
    """Refuse models and tasks without a gradient per patient.

    Raises
    ------
    StudyError
        With all reasons: Cox's likelihood, batch normalisation, balancing that uses losses or gradients, of tasks or of
        branches.
    """
    reasons = record_level_refusals(
        [head.name for head in heads if head.compares_patients],
        [name for name, module in model.named_modules() if isinstance(module, MIXING)],
        weighting=weighting,
        aggregation=aggregation,
        balances_branches=isinstance(model, BranchedModel) and model.balances,
    )
    if reasons:
        raise StudyError("; ".join(reasons), where="federation.privacy.record_level")


class PrivateTrainer:
    """Local training with private steps; takes the place of
    :func:`~equipoise.platform.federation.clients.study_trainer.plain_steps`.

    Parameters
    ----------
    params
        The ``record_level`` section.
    secret
        Seed that only the site knows, on which its noise depends as well; None in a simulation.
    """

    def __init__(self, params: RecordLevelParams, secret: int | None = None) -> None:
        self.params = params
        self.secret = () if secret is None else (secret,)

    def __call__(self, work: StudyJob) -> tuple[int, LossSums]:
        """Take as many steps as plain training would; no training losses are returned."""
        job, parts, n = work.job, work.parts, len(work.data.train)
        request, heads = job.context.request, work.parts.losses.heads
        rate, steps_planned = sampling_plan(n, work.size, request.epochs, request.steps)
        blank = torch.ones(len(heads), dtype=torch.float64)
        present = StepContext(tuple(head.name for head in heads), blank > 0, 0, 0)
        weights = parts.balancer.weighting.weights(blank, present).tolist()
        known = job.loss_factors([head.name for head in heads])
        factors = blank.tolist() if known is None else known.tolist()
        steps = PrivateSteps(
            parts.model,
            parts.losses,
            clip=self.params.clip,
            noise=self.params.noise,
            patients=n,
            rate=rate,
            accountant=Accountant(self.params.delta),
            task_weights={head.name: w * f for head, w, f in zip(heads, weights, factors, strict=True)},
            chunk=self.params.chunk,
        )
        names = np.frombuffer("\n".join(work.data.train.patients).encode(), np.uint8)
        for index in range(steps_planned):
            rng = noise_source(*self.secret, job.seed, index, PRIVATE, data=names)
            steps.backward(steps.draw(rng), lambda rows, i=index: _read(work, rows, i), rng)  # type: ignore[misc]
            parts.optimizer.step()
            job.context.steps += 1
        # Neither losses nor the tasks of the drawn patients are returned: the client's declared counts are used.
        no_losses = LossSums(torch.zeros(len(heads)), torch.ones(len(heads)))
        return max(round(steps_planned * rate), 1), no_losses


def _read(work: StudyJob, rows: Sequence[int], index: int) -> CaseBatch:
    cases = [work.data.train[row] for row in rows]
    most, pass_ = work.params.bag_tiles, work.job.first_epoch + index
    tiles = [draw_tiles(len(case.bag), most, work.job.seed, pass_, case.patient) for case in cases]
    return collate(cases, work.targets, tiles, states=reads_states(work.parts.model)).to(work.parts.device)


class PrivateSteps:
    """The private gradient of one client, step by step.

    Parameters
    ----------
    model
        On its device, in training mode.
    losses
        Losses of its tasks, without Cox's likelihood.
    task_weights
        task → fixed weight of its loss; 1 if not named.
    clip, noise
        C and z.
    patients
        n, number of patients of the client.
    rate
        q.
    accountant
        The accountant of the client.
    chunk
        Patients whose gradients are held in memory at once.

    Raises
    ------
    StudyError
        As :func:`check_supported`, and if noise or rate give no privacy.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: TaskLosses,
        *,
        clip: float,
        noise: float,
        patients: int,
        rate: float,
        accountant: Accountant,
        task_weights: Mapping[str, float] | None = None,
        chunk: int = 8,
    ) -> None:
        check_supported(model, losses.heads)
        self.model = model
        self.losses = losses
        self.clip = clip
        self.patients = patients
        self.mechanism = SampledGaussian(rate, noise)
        self.accountant = accountant
        self.chunk = chunk
        weights = task_weights or {}
        self.weights = torch.tensor([weights.get(head.name, 1.0) for head in losses.heads])
        self.method: Method = "loop" if _has_recurrent_layers(model) else "vmap"

    def draw(self, rng: np.random.Generator) -> list[int]:
        """Rows of the patients of a step; may be empty."""
        return np.flatnonzero(rng.random(self.patients) < self.mechanism.rate).tolist()

    def backward(
        self, rows: Sequence[int], read: Callable[[Sequence[int]], CaseBatch], rng: np.random.Generator
    ) -> None:
        """Account for the step, then set ``.grad`` of every parameter to the private gradient.

        Parameters
        ----------
        rows
            From :meth:`draw`.
        read
            Reads the cases of some rows onto the model's device; called for ``chunk`` rows at a time.
        rng
            For the noise, which depends on the sum as well
            (:func:`~equipoise.platform.federation.privacy.noise.noise_source`); a secret in a real federation.

        Raises
        ------
        FederationError
            If the step would exceed the budget; then the gradient is not set.
        """
        self.accountant.spend(self.mechanism)
        parameters = _learnable(self.model)
        size = sum(p.numel() for p in parameters.values())
        total = torch.zeros(size, dtype=torch.float64)
        for start in range(0, len(rows), self.chunk):
            gradients_BP = self._gradients(read(rows[start : start + self.chunk]))
            total += clipped_sum(gradients_BP, self.clip).cpu()
        source = noise_source(int(rng.integers(2**63)), data=total.numpy())
        total += torch.from_numpy(source.normal(0.0, self.mechanism.noise * self.clip, size))
        total /= self.mechanism.rate * self.patients
        offset = 0
        for parameter in parameters.values():
            part = total[offset : offset + parameter.numel()]
            parameter.grad = part.view_as(parameter).to(parameter)
            offset += parameter.numel()

    def _gradients(self, batch: CaseBatch) -> Tensor:
        """``[B, P]``, by vmap unless an operation of the model does not support it, else one by one.

        vmap raises RuntimeError for control flow that depends on data and for in-place operations; any other error of
        the model is raised in the loop as well.
        """
        if self.method == "vmap":
            state = torch.get_rng_state()
            try:
                return gradients_of_patients(self.model, self.losses, self.weights, batch, "vmap")
            except RuntimeError as error:
                torch.set_rng_state(state)
                log.info("gradients of patients one by one: %s", str(error).partition("\n")[0])
                self.method = "loop"
        return gradients_of_patients(self.model, self.losses, self.weights, batch, "loop")


def gradients_of_patients(
    model: nn.Module, losses: TaskLosses, weights_T: Tensor, batch: CaseBatch, method: Method
) -> Tensor:
    """``[B, P]`` gradient of every patient's weighted loss with respect to all learnable parameters, concatenated.

    ``vmap`` computes them in one pass over the batch; ``loop`` computes them one by one. Both draw a separate dropout
    mask for every patient.
    """
    compute = _vmap_gradients if method == "vmap" else _loop_gradients
    return compute(model, losses, weights_T.to(batch.bags.device), batch)


def clipped_sum(gradients_BP: Tensor, clip: float) -> Tensor:
    """``[P]`` float64 sum of the rows, each of norm ``clip`` at most.

    Raises
    ------
    ValueError
        If a gradient is not finite, since no factor bounds it and a patient must not be left out silently.
    """
    wide = gradients_BP.double()
    norms_B = wide.norm(dim=1)
    if not bool(torch.isfinite(norms_B).all()):
        raise ValueError("the gradient of a patient is not finite, and cannot be clipped")
    factors_B = clip / norms_B.clamp(min=clip)
    return factors_B @ wide


def _loop_gradients(model: nn.Module, losses: TaskLosses, weights_T: Tensor, batch: CaseBatch) -> Tensor:
    parameters = list(_learnable(model).values())
    rows = []
    for one in _one_by_one(batch):
        loss = losses(model(one), one.targets, one.label_mask, one.cohort).sums @ weights_T
        if not loss.requires_grad:
            rows.append(torch.zeros(sum(p.numel() for p in parameters), device=weights_T.device))
            continue
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def _vmap_gradients(model: nn.Module, losses: TaskLosses, weights_T: Tensor, batch: CaseBatch) -> Tensor:
    from torch.func import functional_call, grad, vmap

    parameters = {name: p.detach() for name, p in _learnable(model).items()}
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in parameters}
    rest |= dict(model.named_buffers())

    def loss_of(values: dict[str, Tensor], tensors: dict[str, object]) -> Tensor:
        one = _batch_of_one(tensors, batch)
        outputs = functional_call(model, {**values, **rest}, (one,))
        return losses(outputs, one.targets, one.label_mask, one.cohort).sums @ weights_T

    gradients = vmap(grad(loss_of), in_dims=(None, 0), randomness="different")(parameters, _tensors_of(batch))
    return torch.cat([gradients[name].flatten(1) for name in parameters], dim=1)


def _has_recurrent_layers(model: nn.Module) -> bool:
    """Whether the model has recurrent layers, which flatten their weights in place and do not support vmap."""
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def _learnable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _one_by_one(batch: CaseBatch) -> Iterator[CaseBatch]:
    """Batches of one patient with the padding of the whole batch, so that both methods see the same numbers."""
    for i in range(len(batch)):
        tensors = {name: _row(value, i) for name, value in _tensors_of(batch).items()}
        yield _batch_of_one(tensors, batch)


def _row(value: object, i: int) -> object:
    if isinstance(value, Tensor):
        return value[i]
    return {key: tensor[i] for key, tensor in cast(dict[str, Tensor], value).items()}


def _tensors_of(batch: CaseBatch) -> dict[str, object]:
    """Tensors and dictionaries of tensors of the batch, with the patients on the first axis."""
    parts: dict[str, object] = {}
    for part in dataclasses.fields(batch):
        value = getattr(batch, part.name)
        if isinstance(value, Tensor):
            parts[part.name] = value
        elif isinstance(value, Mapping):
            parts[part.name] = dict(value)
    return parts


def _batch_of_one(tensors: dict[str, object], whole: CaseBatch) -> CaseBatch:
    """A batch of one patient from the patient's tensors, with the padding information of the whole batch."""
    parts = {
        name: value[None]
        if isinstance(value, Tensor)
        else {key: tensor[None] for key, tensor in cast(dict[str, Tensor], value).items()}
        for name, value in tensors.items()
    }
    return dataclasses.replace(whole, **parts)  # type: ignore[arg-type]
