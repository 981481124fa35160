"""Registered schemes are what the specs accept and what the modules run."""

from importlib import import_module

import pytest
from pydantic import ValidationError

from equipoise.datasets import entries
from equipoise.datasets.cohorts.sites import SCHEMES as SITE_SCHEMES
from equipoise.datasets.cohorts.splits import SCHEMES as SPLIT_SCHEMES
from equipoise.datasets.params import SCHEME_PARAMS, SplitParams


@pytest.mark.parametrize("kind", ["SPLITS", "SITES", "PRESETS"])
def test_entries_load_and_describe_themselves(kind: str) -> None:
    for name, (summary, params, target) in getattr(entries, kind).items():
        module, _, attribute = target.partition(":")
        assert callable(getattr(import_module(module), attribute)), name
        assert summary
        with pytest.raises(ValidationError):
            params.model_validate({"no_such_option": 1})


def test_schemes_of_specs_and_entries_agree() -> None:
    offered = SplitParams.model_json_schema()["properties"]["scheme"]["enum"]
    assert list(entries.SPLITS) == offered == list(SPLIT_SCHEMES) == list(SCHEME_PARAMS)
    assert all(entries.SPLITS[name][1] is SCHEME_PARAMS[name] for name in offered)
    assert list(entries.SITES) == list(SITE_SCHEMES)


def test_options_of_schemes_are_options_of_the_section() -> None:
    section = SplitParams.model_fields
    for name, (_, params, _) in entries.SPLITS.items():
        for option, field in params.model_fields.items():
            assert section[option].default == field.default, (name, option)
