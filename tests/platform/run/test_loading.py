"""What components say about a study stands beside what the schema says: all problems at once, each with its line."""

from pathlib import Path

import pytest

from equipoise.platform.errors import StudyError
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.reading import read_study

STUDY = """\
version: 1
name: crc
cohorts:
  - {name: A, role: develop, clinical: a.csv, slides: s.csv}
tasks:
  - {name: MSI, type: binary, column: MSI, positive: MSI-H}
  - {name: MSI, type: regression, column: LF}
balancing: uncertainty
search:
  space: {training.lrr: [0.1]}
federation:
  strategy: fedavg
  local: {optimizer: sgd, lr: 0.1, steps: 1}
  privacy: {record_level: {}, statistics: public}
"""


def test_schema_and_components_report_together(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    with pytest.raises(StudyError) as caught:
        load_study(file)
    lines = str(caught.value).splitlines()
    assert "3 problems" in lines[0]
    assert lines[1].strip() == "line 5, tasks: the name 'MSI' is used 2 times"
    assert lines[2].strip().startswith("line 9, search: space.training.lrr: not something that is searched")
    assert lines[3].strip().startswith("line 11, federation: weighting uncertainty learns from losses")


def test_the_schema_alone_knows_no_component(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("name: MSI, type: regression", "name: LF, type: regression"))
    assert read_study(file).search is not None
    with pytest.raises(StudyError, match="2 problems"):
        load_study(file)
