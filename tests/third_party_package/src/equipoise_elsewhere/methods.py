"""The methods themselves, as small as they can be. ``USED`` notes which of them a study called."""

import hashlib

import numpy as np
import torch
from torch import nn

from equipoise.models.balancing.protocol import Aggregator
from equipoise.models.balancing.weighting import Weighting, positive
from equipoise.models.gptomic.modulations import Modulation
from equipoise.models.slide_encoders.protocol import WithoutStages
from equipoise.models.tables.model import TableModel
from equipoise.models.tables.rows import row_width
from equipoise.platform.federation.aggregation.protocol import StatelessAggregation
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.report.blocks import Section, Text

USED: set[str] = set()


class MeanColour:
    dim, batch_size = 3, 16

    def __init__(self, params):
        self.hash = hashlib.sha256(b"mean colour 1").hexdigest()

    def __call__(self, tiles):
        USED.add("encoders")
        return (tiles.mean(axis=(1, 2)) / 255).astype(np.float16)


class Extremes(WithoutStages):
    def __init__(self, params):
        self.fingerprint = hashlib.sha256(b"extremes 1").hexdigest()

    def dim(self, tile_dim):
        return 2 * tile_dim

    def readout(self, state):
        USED.add("slide_encoders")
        bags = [tokens[mask] for tokens, mask in zip(state.tokens, state.token_mask, strict=True)]
        return torch.stack([torch.cat([bag.amax(0), bag.amin(0)]) for bag in bags])


class Ranks:
    name, dim = "ranks", 3

    def __init__(self, params):
        self.accepts = params.accepts
        self.fingerprint = hashlib.sha256(b"ranks 1").hexdigest()

    def knows(self, genes):
        return np.ones(len(genes), bool)

    def encode(self, values, genes, *, kind, seed):
        USED.add("rna_encoders")
        ranks = values.argsort(axis=1).argsort(axis=1) / len(genes)
        thirds = [part.mean(axis=1) for part in np.array_split(ranks, 3, axis=1)]
        return np.stack(thirds, axis=1).astype(np.float32)


class Letters:
    dim = 26

    def __init__(self, params):
        self.fingerprint = hashlib.sha256(b"letters 1").hexdigest()

    def encode(self, sentences):
        USED.add("text_encoders")
        rows = np.array([[s.lower().count(chr(97 + i)) for i in range(26)] for s in sentences], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class TanhTable(TableModel):
    def __init__(self, params, shape, heads):
        USED.add("models")
        body = nn.Sequential(nn.Linear(row_width(shape.omics), params.dim), nn.Tanh())
        super().__init__(shape, heads, body, params.dim)


class MeanBranch(nn.Module):
    per_task = False

    def __init__(self, params, widths):
        super().__init__()
        self.params = params
        self.layers = nn.ModuleDict({name: nn.Linear(width, params.dim) for name, width in widths.items()})

    def width(self, head):
        return self.params.dim

    def columns(self, head):
        return {}

    def forward(self, vectors, present, scores):
        USED.add("fusions")
        return torch.stack([layer(vectors[name]) for name, layer in self.layers.items()]).mean(dim=0)


class Halve(Modulation):
    def coefficient(self, ratio):
        USED.add("modulations")
        return 0.5 if ratio > 1 else 1.0


class Opposites(nn.Module):
    count = 2

    def __init__(self, params, shape, modality, width):
        super().__init__()
        self.layer = nn.Linear(shape.omics[modality], width)

    def forward(self, rows):
        USED.add("modal_tokens")
        return torch.stack([self.layer(rows), self.layer(-rows)], dim=1)


class InverseLoss(Weighting):
    def weights(self, losses, context):
        USED.add("weightings")
        return 1 / positive(losses, "inverse_loss")


class FirstHalves(Aggregator):
    def coefficients(self, gram, losses, context):
        USED.add("aggregators")
        return torch.tensor([0.5**i for i in range(len(gram))], dtype=gram.dtype)


class PatientBuffer(Strategy):
    """Asynchronous, and each client keeps its last update."""

    def __init__(self, params, *others):
        super().__init__(params, *others)
        self.buffer = params.buffer

    def staleness(self, behind):
        USED.add("strategies")
        return 1 / (1 + behind)

    def on_train_start(self, context):
        if "last" in context.state:
            USED.add("state of a client")

    def on_train_end(self, context, delta):
        context.state["last"] = delta.astype(np.float32)
        return {}


class Midpoint(StatelessAggregation):
    def aggregate(self, updates, schema, weights):
        USED.add("server_aggregations")
        stacked = np.stack([update.delta for update in updates])
        return ((stacked.max(axis=0) + stacked.min(axis=0)) / 2).astype(np.float32)


def by_initial(develop, scheme, tasks, base, seed):
    USED.add("client_schemes")
    letters = (scheme.params or {}).get("letters", 1)
    return [patient[:letters] for patient in develop["patient"]], ["clients by initial"]


def every_nth(develop, params, rng):
    USED.add("splits")
    return [np.arange(start, len(develop.patients), params.n) for start in range(params.n)]


def last_digit(table, cohort, params, base):
    USED.add("sites")
    return [f"{cohort}:{int(patient[-1]) % params.groups}" for patient in table.index], []


def pocket(name):
    from equipoise.datasets.synthetic.catalogue import SITES
    from equipoise.datasets.synthetic.params import CohortPlan, Knobs, Preset, StudyDefaults

    USED.add("cohorts")
    everything = Knobs(missing_slide=0, missing_rna=0, missing_label=0, missing_tme=0)
    cohort = CohortPlan(name="syn-crc-a", patients=8, side_um=512, style=SITES["syn-crc-a"])
    study = StudyDefaults(mpp=1.0, tile_px=112, dim=8, folds=2, epochs=1, patience=1, bootstrap=50)
    return Preset(name=name, cohorts=(cohort,), knobs=everything, study=study)


class Brightness:
    def __init__(self, params):
        USED.add("attributions")
        self.feature = params.feature

    def scores(self, case):
        column = case.batch.bags[0, :, self.feature]
        return column - column.mean()


def greeting(run, params):
    USED.add("sections")
    return Section("From elsewhere", "A sentence of another package.", [Text("Greetings.")])


def two_sites(tables, file):
    USED.add("templates")
    return f"""\
version: 1
name: elsewhere
cohorts:
  - name: A
    role: develop
    clinical: {tables / "clinical.csv"}
    omics: {{rna: {tables / "rna.csv"}}}
    site: {{scheme: last_digit, params: {{groups: 3}}}}
tasks:
  - {{name: RESPONSE, type: binary, column: RESPONSE, positive: "yes", negative: ["no"], main: true}}
  - {{name: SIZE, type: regression, column: SIZE}}
tables: {{clinical: [{{column: AGE, type: number}}], rna: {{encoder: ranks}}}}
model: {{kind: tanh_table, dim: 3}}
balancing: inverse_loss+first_halves
training: {{epochs: 2, lr: 0.01, batch: 8}}
splits: {{scheme: every_nth, n: 2}}
evaluation: {{bootstrap: 50}}
federation:
  sites: {{scheme: by_initial, min_patients: 1, params: {{letters: 1}}}}
  rounds: 3
  strategy: patient_buffer
  strategy_params: {{buffer: 2}}
  server_aggregation: midpoint
  local: {{lr: 0.05, batch: 8}}
  backend: inline
"""
