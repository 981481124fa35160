"""A sample of the cases of ``benchmarks.bad_input``: each is refused or remarked on, and none is an error of ours."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.bad_input import run_case
from benchmarks.bad_input_cases import cases
from benchmarks.bad_input_template import make_template

#: Kind → one case in so many.
SAMPLE = {
    "study_keys": 130,
    "yaml": 9,
    "tables": 23,
    "slides": 19,
    "h5": 24,
    "messages": 9,
    "cluster_files": 9,
    "submissions": 4,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("h5py", reason="the template has .h5 features: pip install -e '.[h5]'")
    folder = tmp_path_factory.mktemp("template")
    make_template(folder, run=False)
    return folder


@pytest.fixture(autouse=True)
def logging_is_put_back() -> Iterator[None]:
    """A command sets up logging for its process."""
    loggers = [logging.getLogger(name) for name in ("equipoise", "py.warnings")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    shown = warnings.formatwarning, warnings.showwarning
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    warnings.formatwarning, warnings.showwarning = shown
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate


@pytest.mark.parametrize("kind", SAMPLE)
def test_bad_input_is_refused_or_remarked_on(kind: str, template: Path) -> None:
    chosen = [case for i, case in enumerate(cases(kind)) if i % SAMPLE[kind] == 0]
    assert len(chosen) > 3
    faults = {case.name: verdict for case in chosen if (verdict := run_case(case, template)).fault}
    assert not faults
