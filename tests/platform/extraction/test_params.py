import subprocess
import sys

import pytest
from pydantic import ValidationError

from equipoise.platform.extraction.params import ExtractionParams


def test_defaults_are_a_valid_section() -> None:
    params = ExtractionParams()
    assert (params.encoder, params.mpp, params.tile_px, params.resample) == ("handcrafted", 0.5, 224, "area")
    assert ExtractionParams.model_validate(params.model_dump()) == params


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"encoder": "handcraft"}, "Did you mean 'handcrafted'"),
        ({"encoder_params": {"weights": "x"}}, "encoder_params.weights: Extra inputs"),
        ({"tile_px": 48}, "at least 64 px, not 48"),
        ({"mpp": 50}, "less than or equal to 5"),
        ({"mpp_override": 0.00499}, "greater than or equal to 0.1"),
        ({"resample": "nearest"}, "'area' or 'dct'"),
        ({"max_fail": 1.5}, "less than or equal to 1"),
        ({"tile": 224}, "Extra inputs"),
    ],
)
def test_refusals_say_what_is_meant(section: dict, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ExtractionParams.model_validate(section)
    assert says in str(caught.value)


def test_reading_a_study_imports_nothing_heavy() -> None:
    code = (
        "import sys, equipoise.platform.extraction.params as p; p.ExtractionParams();"
        "heavy = ('cv2', 'torch', 'pandas', 'ray', 'scipy', 'pyarrow', 'openslide');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
