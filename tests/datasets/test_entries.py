"""Registered schemes are what the specs accept and what the modules run."""

from importlib import import_module

import pytest
from pydantic import ValidationError

from equipoise.datasets import entries
from equipoise.datasets.cohorts.sites import SCHEMES


@pytest.mark.parametrize("kind", ["SPLITS", "SITES", "PRESETS"])
def test_entries_load_and_describe_themselves(kind: str) -> None:
    declared = getattr(entries, kind)
    assert declared
    for name, (summary, params, target) in declared.items():
        module, _, attribute = target.partition(":")
        assert callable(getattr(import_module(module), attribute)), name
        assert summary
        with pytest.raises(ValidationError):
            params.model_validate({"no_such_option": 1})


def test_built_in_site_schemes_are_those_of_the_entries() -> None:
    assert {name: (row.params, row.find.__name__) for name, row in SCHEMES.items()} == {
        name: (params, target.rpartition(":")[2]) for name, (_, params, target) in entries.SITES.items()
    }
