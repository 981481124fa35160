"""The space of a study that federates: its strategies and what its clients use; and what cannot be asked for."""

from __future__ import annotations

from typing import Any

import pytest
from test_space import TASKS, data, study

from equipoise.platform.registry import entries, get
