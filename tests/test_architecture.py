"""What a developer would lose: a page about the architecture that is true of the code."""

from __future__ import annotations

import re
from pathlib import Path

import gptsweep

PACKAGE = Path(gptsweep.__file__).parent
ROOT = PACKAGE.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FOLDERS = re.findall(r"^    ((?:[\w.]+/? ?,? ?)+?)  ", PAGE, re.MULTILINE)


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"`((?:\w+/)*\w+\.(?:py|toml)|(?:\w+/)+)`", PAGE))
    assert len(named) > 20
    assert {name for name in named if not ((PACKAGE / name).exists() or (ROOT / name).exists())} == set()


def test_its_folders_are_those_of_the_layers_in_their_order() -> None:
    named = [name.strip("/").removesuffix(".py") for line in FOLDERS for name in re.split(r"[ ,]+", line) if name]
    layers = re.findall(
        r'^    "(\w+)",$', (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [")[1], re.MULTILINE
    )
    assert [layer for layer in layers if layer in named] == named
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"data"}
    assert folders <= set(named)


def test_a_value_passes_at_most_eight_files_on_its_way_to_disk() -> None:
    walk, _, files = PAGE.split("## The walk")[1].split("## ")[0].partition("Files: ")
    names = re.findall(r"`(\w+)`", files.partition(";")[0])
    assert len(names) == len(set(names)) <= 8
    steps = re.findall(r"`((?:\w+/)*(\w+)\.py)`", walk)
    assert set(names) == {name for _, name in steps} - {"points"}, "the type of the value is no station"
    assert all((PACKAGE / path).exists() for path, _ in steps)
