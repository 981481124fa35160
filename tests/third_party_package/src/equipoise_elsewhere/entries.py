"""What the package offers: a tuple (one line, parameter model, ``module:object``) per entry. Light: pydantic only."""

from typing import ClassVar

from pydantic import BaseModel, Field

from equipoise.datasets.params import SiteParams
from equipoise.models.balancing.entries import AggregatorParams, WeightingParams
from equipoise.models.encoders.entries import EncoderParams
from equipoise.models.gptomic.entries import FusionParams, ModulationParams
from equipoise.models.modaltune.entries import ModalTokensParams
from equipoise.models.rna.entries import RnaEncoderParams
from equipoise.models.slide_encoders.entries import SlideEncoderParams
from equipoise.models.text.entries import TextEncoderParams
from equipoise.platform.explain.entries import AttributionParams
from equipoise.platform.federation.entries import AggregationParams, StrategyParams
from equipoise.platform.federation.simulation.entries import ClientSchemeParams
from equipoise.platform.report.entries import SectionParams

HERE = "equipoise_elsewhere.methods"


class BrightnessParams(AttributionParams):
    unit: ClassVar[str] = "brightness, whatever the {output}"

    feature: int = Field(0, ge=0)


class TanhParams(BaseModel):
    reads: ClassVar[frozenset[str]] = frozenset({"clinical", "rna"})

    dim: int = Field(4, ge=1)


class MeanBranchParams(FusionParams):
    dim: int = Field(4, ge=1)


class HalveParams(ModulationParams):
    slows: ClassVar[bool] = True


class RanksParams(RnaEncoderParams):
    in_process: ClassVar[bool] = True


class InverseLossParams(WeightingParams):
    needs_nonnegative_losses: ClassVar[bool] = True


class PatientBufferParams(StrategyParams):
    asynchronous: ClassVar[bool] = True

    buffer: int = Field(2, ge=1)


class EveryNthParams(BaseModel):
    """No base of Equipoise's: what it does not say has the defaults of split schemes."""

    n: int = Field(3, ge=2)


class LastDigitParams(SiteParams):
    groups: int = Field(2, ge=1)


class ByInitialParams(ClientSchemeParams):
    letters: int = Field(1, ge=1)


MEAN_COLOUR = ("mean of the three channels", EncoderParams, f"{HERE}:MeanColour")
EXTREMES = ("largest and smallest feature", SlideEncoderParams, f"{HERE}:Extremes")
RANKS = ("share of genes that are lower, averaged over thirds", RanksParams, f"{HERE}:Ranks")
LETTERS = ("share of each letter in the sentence", TextEncoderParams, f"{HERE}:Letters")
TANH_TABLE = ("one small layer over the covariates", TanhParams, f"{HERE}:TanhTable")
MEAN_BRANCH = ("mean of projected branches", MeanBranchParams, f"{HERE}:MeanBranch")
HALVE = ("half the learning rate for every branch above a ratio of 1", HalveParams, f"{HERE}:Halve")
OPPOSITES = ("a token of the columns, one of their opposites", ModalTokensParams, f"{HERE}:Opposites")
INVERSE_LOSS = ("weights are inverse losses", InverseLossParams, f"{HERE}:InverseLoss")
FIRST_HALVES = ("every gradient counts half of the one before", AggregatorParams, f"{HERE}:FirstHalves")
PATIENT_BUFFER = ("steps when the buffer is full", PatientBufferParams, f"{HERE}:PatientBuffer")
MIDPOINT = ("middle of the extremes of every coordinate", AggregationParams, f"{HERE}:Midpoint")
BY_INITIAL = ("clients by the first letters of the keys", ByInitialParams, f"{HERE}:by_initial")
EVERY_NTH = ("every n-th patient is tested", EveryNthParams, f"{HERE}:every_nth")
LAST_DIGIT = ("sites by the last digit of the key", LastDigitParams, f"{HERE}:last_digit")
POCKET = ("one cohort of eight small slides", BaseModel, f"{HERE}:pocket")
BRIGHTNESS = ("how far a tile is above the mean of its case", BrightnessParams, f"{HERE}:Brightness")
GREETING = ("a sentence of its own", SectionParams, f"{HERE}:greeting")
TWO_SITES = ("a study of the tables of the test", BaseModel, f"{HERE}:two_sites")
