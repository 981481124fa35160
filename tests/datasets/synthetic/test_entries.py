import subprocess
import sys

import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME, SITES, resolve_preset
from equipoise.datasets.synthetic.entries import PRESETS
from equipoise.platform.registry import resolve


def test_every_preset_is_registered_and_every_entry_is_a_preset():
    assert list(PRESETS) == list(PRESETS_BY_NAME)
    for line, params, target in PRESETS.values():
        assert 10 < len(line) < 110
        assert params().model_dump()["seed"] >= 0
        assert callable(resolve(target))


def test_entries_are_light():
    heavy = "{'cv2', 'scipy', 'PIL', 'pandas', 'openslide', 'simplejpeg'}"
    code = (
        "import sys, equipoise.datasets.synthetic.entries, equipoise.datasets.synthetic.catalogue\n"
        f"print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_unknown_preset_names_the_nearest():
    with pytest.raises(DataError, match=r"(?s)known: tiny, quick, .*'quick'"):
        resolve_preset("quik")


def test_sites_never_share_what_identifies_a_patient():
    for key in ("number", "letters", "sources"):
        values = [getattr(style, key) for style in SITES.values()]
        assert len(set(values)) == len(values), key
