"""Names that come from tables, files and other people never leave the folder that they are used in."""

from pathlib import Path

import pytest

from equipoise.datasets.names import file_stem, plain_name, require_name
from equipoise.platform.explain.tile_scores import scores_path

HOSTILE = (
    "..", ".", "...", "", "../x", "../../etc/passwd", "/etc/passwd", "a/../../b", "a\\..\\b", "C:\\x", "~root", "x\0y",
    "a\nb", "-rf", "x" * 5000, "\u202egpj.exe", "CON", "é/../ü", "a//b", "./a", "%2e%2e%2f", "\ud800",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_outputs_stay_inside(tmp_path: Path, name: str) -> None:
    folders = [tmp_path / "files", tmp_path / "pages", tmp_path / "maps"]
    for folder, path in zip(
        folders,
        (
            folders[0] / file_stem(name),
            folders[1] / f"{file_stem(name)}.html",
            scores_path(folders[2], name, name, name, "ig"),
        ),
        strict=True,
    ):
        inside = path.resolve().relative_to(folder)
        assert inside.parts
        assert ".." not in inside.parts
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert path.is_file()


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_become_folders_are_plain(name: str) -> None:
    if name != "CON":
        with pytest.raises(ValueError, match="becomes a part of a path"):
            require_name(name, "encoder")
    proposal = plain_name(name)
    assert not proposal or require_name(proposal, "encoder") == proposal
