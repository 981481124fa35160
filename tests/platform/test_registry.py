"""What entries say of themselves, and where another package's entries get what they leave unsaid."""

from typing import ClassVar

import pytest
from pydantic import BaseModel

from equipoise.platform.federation.entries import StrategyParams
from equipoise.platform.registry import BASES, KINDS, Entry, entries, get, resolve


def test_every_entry_of_a_kind_with_a_base_derives_from_it() -> None:
    assert set(BASES) <= set(KINDS)
    derived = [
        issubclass(entry.params, resolve(base))
        for kind, base in BASES.items()
        for entry in entries(kind).values()
    ]
    assert len(derived) > 70
    assert all(derived)


def test_attributes_are_those_of_the_entry_or_the_defaults_of_its_kind() -> None:
    class Patient(BaseModel):
        asynchronous: ClassVar[bool] = True

    foreign = Entry("patient", "waits for nobody", Patient, "somewhere:Strategy", base=StrategyParams)
    assert foreign.attribute("asynchronous")
    assert not foreign.attribute("sequential")
    with pytest.raises(AttributeError, match="asynchronos"):
        foreign.attribute("asynchronos")
    assert get("strategies", "scaffold").attribute("sends_second_vector")
    assert not get("strategies", "fedavg").attribute("sends_second_vector")
