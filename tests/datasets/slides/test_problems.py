import pickle  # noqa: TID251 - Ray sends exceptions this way

import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.slides.problems import EXCLUSIONS, FAILURES, STATUSES, SlideProblem


def test_every_status_is_ok_a_failure_or_an_exclusion() -> None:
    assert {"ok"} | FAILURES | EXCLUSIONS == set(STATUSES)
    assert not FAILURES & EXCLUSIONS


def test_survives_the_way_between_processes() -> None:
    problem = SlideProblem("no_mpp", "nothing\n said", where="a.svs", fix="say it")
    again = pickle.loads(pickle.dumps(problem))
    assert (again.status, again.what, again.where, again.fix) == (
        "no_mpp",
        "nothing\n said",
        "a.svs",
        "say it",
    )
    assert isinstance(again, DataError)
    assert again.line == "nothing said; at a.svs; fix: say it"


def test_unknown_status_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="unknown slide status 'ok'"):
        SlideProblem("ok", "fine")
