"""One registry mechanism for every kind of extension.

A package declares its entries in a light ``entries.py``: a plain dictionary of name → (one line, pydantic parameter
model, ``"module:object"``). The object is imported only when it is used, so that listing encoders does not import
torch. Other packages add entries through Python entry points in the group ``equipoise.<kind>``; each of them names a
tuple of the same form.

What an entry can and needs (a strategy is asynchronous, a server aggregation needs single updates) is an attribute of
its parameter model: a ``ClassVar``. The base class of each kind (:data:`BASES`) declares all attributes of the kind,
says what they mean and holds their defaults. Other modules ask :meth:`Entry.attribute` and never compare names.
"""

import difflib
import importlib
import logging
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from pydantic import BaseModel

from equipoise.platform.errors import StudyError

#: kind → "module:dictionary" with the built-in entries.
KINDS = {
    "encoders": "equipoise.models.encoders.entries:ENTRIES",
    "slide_encoders": "equipoise.models.slide_encoders.entries:ENTRIES",
    "rna_encoders": "equipoise.models.rna.entries:ENTRIES",
    "text_encoders": "equipoise.models.text.entries:ENTRIES",
    "models": "equipoise.models.entries:ENTRIES",
    "fusions": "equipoise.models.gptomic.entries:FUSIONS",
    "modulations": "equipoise.models.gptomic.entries:MODULATIONS",
    "modal_tokens": "equipoise.models.modaltune.entries:MODAL_TOKENS",
    "weightings": "equipoise.models.balancing.entries:WEIGHTINGS",
    "aggregators": "equipoise.models.balancing.entries:AGGREGATORS",
    "strategies": "equipoise.platform.federation.entries:STRATEGIES",
    "server_aggregations": "equipoise.platform.federation.entries:SERVER_AGGREGATIONS",
    "client_schemes": "equipoise.platform.federation.simulation.entries:CLIENT_SCHEMES",
    "splits": "equipoise.datasets.entries:SPLITS",
    "sites": "equipoise.datasets.entries:SITES",
    "cohorts": "equipoise.datasets.entries:PRESETS",
    "attributions": "equipoise.platform.explain.entries:ATTRIBUTIONS",
    "sections": "equipoise.platform.report.entries:SECTIONS",
    "templates": "equipoise.platform.study.templates:TEMPLATES",
}

#: kind → "module:class" of its parameter models' base, which declares what entries of the kind can say of themselves.
BASES = {
    "encoders": "equipoise.models.encoders.entries:EncoderParams",
    "slide_encoders": "equipoise.models.slide_encoders.entries:SlideEncoderParams",
    "rna_encoders": "equipoise.models.rna.entries:RnaEncoderParams",
    "text_encoders": "equipoise.models.text.entries:TextEncoderParams",
    "models": "equipoise.models.entries:ModelParams",
    "fusions": "equipoise.models.gptomic.entries:FusionParams",
    "modulations": "equipoise.models.gptomic.entries:ModulationParams",
    "modal_tokens": "equipoise.models.modaltune.entries:ModalTokensParams",
    "weightings": "equipoise.models.balancing.entries:WeightingParams",
    "aggregators": "equipoise.models.balancing.entries:AggregatorParams",
    "strategies": "equipoise.platform.federation.entries:StrategyParams",
    "server_aggregations": "equipoise.platform.federation.entries:AggregationParams",
    "client_schemes": "equipoise.platform.federation.simulation.entries:ClientSchemeParams",
    "splits": "equipoise.datasets.params:SplitParams",
    "sites": "equipoise.datasets.params:SiteParams",
    "attributions": "equipoise.platform.explain.entries:AttributionParams",
    "sections": "equipoise.platform.report.entries:SectionParams",
    "templates": "equipoise.platform.study.templates:TemplateParams",
}

#: Earlier name of a kind → its name now; both are understood, the earlier one with a warning.
EARLIER_KINDS = {"site_rules": "server_aggregations"}

log = logging.getLogger("equipoise")


class Entry(NamedTuple):
    """One entry of a registry, which a study selects by its name."""

    name: str
    summary: str
    params: type[BaseModel]
    target: str
    base: type[BaseModel] = BaseModel

    def attribute(self, name: str) -> Any:
        """What the entry says of itself: an attribute of its parameter model, else the default of its kind.

        Raises
        ------
        AttributeError
            If entries of this kind have no such attribute.

        Examples
        --------
        >>> get("encoders", "handcrafted").attribute("min_tile_px")
        64
        """
        return getattr(self.params if hasattr(self.params, name) else self.base, name)

    def load(self) -> Any:
        """Import and return the object behind the entry."""
        return resolve(self.target)


def resolve(target: str) -> Any:
    """Import ``"module:object"``."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def entries(kind: str) -> dict[str, Entry]:
    """All entries of a kind, built-in first, in the order in which they were declared.

    Raises
    ------
    StudyError
        If the kind is unknown, or another package claims a name that exists.
    """
    if kind in EARLIER_KINDS:
        log.warning(
            "%s are now called %s; the earlier name will go in the next version", kind, EARLIER_KINDS[kind]
        )
        return entries(EARLIER_KINDS[kind])
    if kind not in KINDS:
        raise StudyError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}{nearest(kind, KINDS)}")
    base = resolve(BASES[kind]) if kind in BASES else BaseModel
    registered = {name: Entry(name, *row)._replace(base=base) for name, row in resolve(KINDS[kind]).items()}
    groups = [kind, *(earlier for earlier, now in EARLIER_KINDS.items() if now == kind)]
    added: dict[str, str] = {}
    for group, point in [(name, p) for name in groups for p in entry_points(group=f"equipoise.{name}")]:
        if added.get(point.name) == point.value:
            continue  # a package that serves both versions
        if group != kind:
            log.warning(
                "entry %s: group equipoise.%s is now called equipoise.%s; the earlier name will go in the next version",
                point.name,
                group,
                kind,
            )
        if point.name in registered:
            raise StudyError(
                f"package {point.dist.name if point.dist else point.value!r} registers {kind} entry {point.name!r}, "
                "which exists already",
                fix="uninstall one of the two packages or rename its entry",
            )
        registered[point.name] = Entry(point.name, *point.load())._replace(base=base)
        added[point.name] = point.value
    return registered


def get(kind: str, name: str) -> Entry:
    """The entry of that name.

    Raises
    ------
    StudyError
        With the known names and the nearest one.
    """
    known = entries(kind)
    if name not in known:
        raise StudyError(f"unknown {kind} entry {name!r}; known: {', '.join(known)}{nearest(name, known)}")
    return known[name]


def nearest(word: str, known: "Any") -> str:
    """``". Did you mean 'x'?"`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f". Did you mean {close[0]!r}?" if close else ""
