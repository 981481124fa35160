"""A site: answers the server's questions from its own patients, and keeps what must not leave.

What leaves a site are its manifest, sums over ``min_n`` patients or more, updates, and sums of losses. Patients,
labels, tiles, private state and predictions stay in its folder.
"""

from __future__ import annotations

import logging
import math
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.datasets.atomic_io import atomic_path, write_json
from equipoise.datasets.cohorts.splits import Fold
from equipoise.platform.errors import EquipoiseError, FederationError
from equipoise.platform.federation.clients.runner import ClientRunner, ClientState
from equipoise.platform.federation.clients.setup import client_setup
from equipoise.platform.federation.clients.study_trainer import ClientData, check_clients
from equipoise.platform.federation.clients.validation import SiteValidation
from equipoise.platform.federation.engine import build_strategy
from equipoise.platform.federation.messages import TrainRequest, failure_text, pack, pack_failure, unpack
from equipoise.platform.federation.privacy.combined import privacy_of
from equipoise.platform.federation.privacy.noised_statistics import noised_rows
from equipoise.platform.federation.privacy.params import NoisedStatistics
from equipoise.platform.federation.privacy.secure_aggregation import Participant, PublicKeys
from equipoise.platform.federation.remote.backend import revealed_header
from equipoise.platform.federation.remote.exchange import ANSWER_KIND, QUESTION_KIND, as_array, from_array
from equipoise.platform.federation.remote.job import RemoteJob, read_job
from equipoise.platform.federation.remote.state_folder import StateFolder
from equipoise.platform.federation.remote.sums import SiteSums
from equipoise.platform.federation.remote.targets import fit_of
from equipoise.platform.federation.remote.versions import versions
from equipoise.platform.federation.standardisation import description_of
from equipoise.platform.federation.vector import Schema
from equipoise.platform.training.batches import CaseList, CaseSource
from equipoise.platform.training.start import initial_model
from equipoise.platform.training.statistics import TrainingRows
from equipoise.platform.training.targets import Targets

log = logging.getLogger("equipoise")

Header = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
Said = tuple[dict[str, Any], dict[str, np.ndarray]]


@dataclass(frozen=True)
class SiteData:
    """What a site reads of its own files.

    Parameters
    ----------
    cases
        Cases of its development patients.
    fold
        Which of them train, validate and test.
    external
        Cases that are only predicted.
    folder
        Where its state and its predictions are written.
    """

    cases: CaseSource
    fold: Fold
    external: CaseList
    folder: Path

    def part(self, name: str) -> CaseList:
        """Cases of ``train``, ``val`` or ``test``."""
        return CaseList(self.cases, getattr(self.fold, name))


class Site:
    """One site of a federation.

    Parameters
    ----------
    name
        By which the server knows it.
    read
        Reads the site's data for a job.
    """

    def __init__(self, name: str, read: Callable[[RemoteJob], SiteData]) -> None:
        self.name, self._read = name, read
        self._session: Session | None = None

    def answer(self, question: bytes) -> bytes:
        """The answer to a question; if it cannot be given, a failure with the reason."""
        private = False
        try:
            header, arrays = unpack(QUESTION_KIND, question)
            if header["what"] == "join":
                job = read_job(from_array(arrays["job"]))
                private = job.federation.privacy.differential
                self._session = None
                self._session = Session(self.name, job, self._read(job))
            session = self._session
            if session is None or session.job.identifier != header["federation"]:
                raise FederationError(
                    "this site has not joined the federation that asks", fix="start the federation again"
                )
            private = session.params.privacy.differential
            said, sent = session.answers[str(header["what"])](header, arrays)
            return pack(ANSWER_KIND, said, sent)
        except Exception as error:  # a failure at one site must not end the federation
            log.exception("the question of the server could not be answered")
            if private:  # the text may quote a patient's values
                return pack_failure(type(error).__name__, "")
            reason = str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}"
            return pack_failure(reason, "" if isinstance(error, EquipoiseError) else traceback.format_exc())


class Session:
    """A site in one federation.

    Parameters
    ----------
    name
        Of the site.
    job
        What the server has sent.
    data
        The site's own.
    """

    def __init__(self, name: str, job: RemoteJob, data: SiteData) -> None:
        self.name, self.job, self.data = name, job, data
        self.params, self.recipe = job.params, job.recipe
        self.states = StateFolder(data.folder, job.identifier, keep=self.params.checkpoints + 1)
        val = data.part("val")
        self.client = ClientData(data.part("train"), val if len(val) else None)
        check_clients({name: self.client}, self.recipe.balancing)
        torch.set_num_threads(self.recipe.training.threads)
        self.answers: dict[str, Callable[[Header, Arrays], Said]] = {
            "join": self.join,
            "sums": self.sums,
            "start": self.start,
            "keys": self.advertise,
            "shares": self.share,
            "train": self.train,
            "reveal": self.reveal,
            "validate": self.validate,
            "states": self.known,
            "finish": self.finish,
        }
        self._participant: Participant | None = None
        self._masked = False
        self._keys: dict[str, PublicKeys] = {}

    def join(self, header: Header, arrays: Arrays) -> Said:
        """Versions, and what its rows are called; nothing of them if it has fewer patients than ``min_n``."""
        train = self.client.train
        self._rows: TrainingRows | None = None
        if len(train) >= self.params.min_n:
            self._rows = TrainingRows.of(train, self.job.tasks)
            noised = self.params.privacy.statistics
            if isinstance(noised, NoisedStatistics):
                self._rows = noised_rows(
                    self._rows, self.job.tasks, noised, seed=self.states.secret(), client=self.name
                )
        described = {} if self._rows is None else {"described": as_array(description_of(self._rows))}
        return {"versions": versions()}, described

    def sums(self, header: Header, arrays: Arrays) -> Said:
        """Sums over its training patients."""
        if self._rows is None:
            raise FederationError("this site has too few patients to send sums")
        step, total = int(header["step"]), None
        if not step:
            self._sums = SiteSums(from_array(arrays["described"]), self._rows, fit_of(self.job))
        else:
            total = {name.removeprefix("total/"): np.array(array) for name, array in arrays.items()}
        return {}, self._sums.answer(step, total)

    def start(self, header: Header, arrays: Arrays) -> Said:
        """Build the model from the targets of all sites; the manifest."""
        self.targets = Targets.from_json(from_array(arrays["targets"]))
        factory = partial(initial_model, self.recipe, self.targets, seed=self.recipe.seed)
        self.schema = Schema.of(factory(), [head.name for head in self.targets.heads])
        if self.schema.hash != header["schema"]:
            raise FederationError(
                "the model of this site has another layout than that of the server",
                fix="install the same version of Equipoise at the server and all sites",
            )
        secret = self.states.secret() if self.params.privacy.differential else None
        self.privacy = privacy_of(
            self.params, self.schema, self.recipe.seed, secret=secret, participant=self._to_mask
        )
        self.strategy = build_strategy(self.params)
        setup = client_setup(
            factory, self.targets, self.params, self.recipe.training, self.recipe.balancing,
            self.strategy, self.privacy,
        )  # fmt: skip
        self.runner = ClientRunner(setup, {self.name: self.client})
        self.validation = SiteValidation(
            self.targets, {self.name: self.client}, self.recipe.training, min_n=self.params.min_n
        )
        self.model = factory()
        return {"manifest": self.runner.join()[0].to_json()}, {}

    def train(self, header: Header, arrays: Arrays) -> Said:
        """An update, and the name of the state after it, which stays here."""
        own = header["clients"][self.name]
        request = TrainRequest.from_bytes(arrays["request"].data)
        before = self.states.load(own["state"])
        data, after = self.runner.train(self.name, request, own["request_id"], before)
        message = b"".join(data) if isinstance(data, list) else bytes(data)
        if after and failure_text(message) is None:
            self.states.save(own["request_id"], after, used=own["state"])
        else:
            log.error("round %d failed here: %s", request.round + 1, failure_text(message))
        state = own["request_id"] if after else ""
        return {"state": state}, {"update": np.frombuffer(message, np.uint8)}

    def validate(self, header: Header, arrays: Arrays) -> Said:
        """Sums of losses of its validation patients."""
        if self.params.privacy.differential:
            raise FederationError("under differential privacy no validation losses leave this site")
        self.schema.load(self.model, arrays["weights"])
        losses = self.validation.of_client(self.name, self.model)
        sent = {task: [*values] for task, values in losses.items() if all(map(math.isfinite, values))}
        return {"losses": sent}, {}

    def known(self, header: Header, arrays: Arrays) -> Said:
        """Whether it has a state."""
        return {"known": self.states.has(header["states"][self.name])}, {}

    def finish(self, header: Header, arrays: Arrays) -> Said:
        """Predict its patients with its model and write everything to its folder; only their number leaves."""
        from equipoise.platform.evaluation.predictions import write_predictions

        weights = np.array(arrays["weights"])
        state = ClientState.from_bytes(self.states.load(header["states"].get(self.name, "")))
        own = self.strategy.personal_weights(self.schema, weights, state.vectors)
        folder = self.states.folder / "result"
        table = self._predictions(own, weights)
        folder.mkdir(parents=True, exist_ok=True)
        write_predictions(table, folder / "predictions.parquet")
        write_json(folder / "targets.json", self.targets.to_json())
        _write_weights(self.schema, weights, folder / "model.safetensors")
        if own is not weights:
            _write_weights(self.schema, own, folder / "personal_model.safetensors")
        write_json(folder / "job.json", self.job.model_dump(mode="json"))
        log.info("predictions and model of this site: %s", folder)
        return {"predicted": int(table["patient"].nunique()) if len(table) else 0}, {}

    def _predictions(self, own: np.ndarray, weights: np.ndarray) -> Any:
        import pandas as pd

        from equipoise.platform.training.build import pick_device
        from equipoise.platform.training.predict import Role, predict

        fold, model = self.data.fold, self.model.to(pick_device(self.recipe.training.device))
        tables = []
        parts: list[tuple[Role, CaseList, np.ndarray]] = [
            ("val", self.data.part("val"), own),
            ("test", self.data.part("test"), own),
            ("external", self.data.external, weights),
        ]
        for role, cases, vector in parts:
            if len(cases):
                self.schema.load(model, vector)
                tables.append(
                    predict(model.eval(), self.targets, cases, role=role, repeat=fold.repeat, fold=fold.index)
                )
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    # secure aggregation

    def advertise(self, header: Header, arrays: Arrays) -> Said:
        """Fresh keys for a round, from the random numbers of the operating system."""
        self._participant = Participant(self.name, int(header["round"]), self.schema.spans, os.urandom)
        self._masked = False
        keys = self._participant.advertise()
        return {"box": keys.box.hex(), "mask": keys.mask.hex()}, {}

    def share(self, header: Header, arrays: Arrays) -> Said:
        """Shares of its secrets, sealed for each of the others."""
        self._keys = {
            site: PublicKeys(bytes.fromhex(box), bytes.fromhex(mask))
            for site, (box, mask) in header["keys"].items()
        }
        sealed = self._in_round(int(header["round"])).share(self._keys, int(header["threshold"]))
        return {}, {site: np.frombuffer(box, np.uint8) for site, box in sealed.items()}

    def reveal(self, header: Header, arrays: Arrays) -> Said:
        """Shares of those who answered and of those who dropped out, never both of one site."""
        participant = self._in_round(int(header["round"]))
        senders = [site for site in header["senders"] if site != self.name]
        boxes = arrays[self.name].reshape(len(senders), -1)
        participant.receive(
            {site: box.tobytes() for site, box in zip(senders, boxes, strict=True)}, self._keys
        )
        revealed = participant.reveal(header["survivors"], header["dropped"], header["contributors"])
        return revealed_header(revealed), {}

    def _to_mask(self, round_: int) -> Participant:
        """Its side of a round, once: of two vectors under the same masks the server would learn the difference."""
        participant = self._in_round(round_)
        if self._masked:
            raise FederationError("the server asks for a second update under the masks of one round")
        self._masked = True
        return participant

    def _in_round(self, round_: int) -> Participant:
        if self._participant is None or self._participant.round != round_:
            raise FederationError("this site exchanged no keys in this round")
        return self._participant


def _write_weights(schema: Schema, vector: np.ndarray, path: Path) -> None:
    from safetensors.numpy import save_file

    with atomic_path(path) as partial:
        save_file({n: np.ascontiguousarray(a) for n, a in schema.named(vector).items()}, partial)
