"""Shared fixtures: token mode before Ray is imported, one Ray for the whole test session, the shared data folder."""

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.browser import Browser

# The same examples everywhere: a run that fails can be repeated.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Before anything imports Ray: explicit token mode, so that nothing is written to the home folder and a head started
# by a test is reachable on every machine equally.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Copies of slides and stores at addresses; inherited by the workers of the Ray that tests start.
if "EQUIPOISE_CACHE" not in os.environ:
    os.environ["EQUIPOISE_CACHE"] = tempfile.mkdtemp(prefix="equipoise-cache-")
    atexit.register(shutil.rmtree, os.environ["EQUIPOISE_CACHE"], ignore_errors=True)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real slides and tables beside the checkout; skips where they are absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data: the folder shared/data beside the checkout is absent")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.cluster.session import ray_session

    with ray_session(RayOptions(address="local", cpus=2, object_store_mb=300, dashboard=False)):
        yield


@pytest.fixture(scope="session")
def tiny(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic cohorts of preset ``tiny`` with their study file; copy before changing anything."""
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.run.synthesis import synthesize

    root = tmp_path_factory.mktemp("tiny")
    synthesize("tiny", 7, root, RayOptions())
    return root


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """One headless Chromium for all tests that need one; see tests/browser.py."""
    from tests.browser import Browser

    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("browser: no Chromium on this machine")
    started = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()
