"""Parameters: values that they refuse, and that importing them is light."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from equipoise.platform.evaluation.params import EvaluationParams, ReportParams, ThresholdParams


def test_defaults_are_those_of_the_study_format() -> None:
    params = EvaluationParams()
    assert (params.bootstrap, params.confidence) == (2000, 0.95)
    assert params.threshold.model_dump() == {"metric": "youden", "value": None, "chosen_on": "val"}
    assert EvaluationParams.model_validate(params.model_dump(mode="json")) == params


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metric": "sensitivity"}, "needs the value to reach"),
        ({"metric": "youden", "value": 0.9}, "takes no value"),
        ({"metric": "sensitivity", "value": 1.5}, "less than or equal to 1"),
        ({"chosen_on": "test"}, "Input should be 'val'"),
        ({"metrik": "youden"}, "Extra inputs are not permitted"),
    ],
)
def test_thresholds_that_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ThresholdParams.model_validate(values)


def test_report_sections_are_checked_when_the_study_is_read() -> None:
    ReportParams.model_validate({"sections": {"quality": {"thumbnails": 4}}})
    with pytest.raises(ValidationError, match="Did you mean 'quality'"):
        ReportParams.model_validate({"sections": {"qualty": {}}})
    with pytest.raises(ValidationError, match="less than or equal to 8"):
        ReportParams.model_validate({"sections": {"quality": {"thumbnails": 9}}})
    with pytest.raises(ValidationError, match="Extra inputs"):
        ReportParams.model_validate({"sections": {"verdict": {"colour": "red"}}})


def test_parameters_and_entries_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import equipoise.platform.report.entries\n"
        "from equipoise.platform.evaluation.params import ReportParams\n"
        "ReportParams.model_validate({'sections': {'quality': {}}})\n"
        "heavy = {'pandas', 'scipy', 'sklearn', 'torch', 'ray', 'jinja2', 'lifelines', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
