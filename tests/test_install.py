"""Installed from a checkout or from a wheel: the package is found wherever one works, and so are its settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = "import sys; from setuptools import build_meta; build_meta.{}(sys.argv[1])"
COMPOSE = """
from hydra import compose, initialize_config_module
with initialize_config_module("gptsweep.conf", version_base="1.3"):
    print(compose("config", ["seed=3", "model=resume"]).model.file)
"""
PROGRAM = """
import hydra
@hydra.main(version_base="1.3", config_path="pkg://gptsweep.conf", config_name="config")
def main(cfg):
    print("seed", cfg.seed)
main()
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is built from, apart, as building writes beside it."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("sources")
    for name in ("gptsweep", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "scripts").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "scripts/package_build.py"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module", params=["editable", "wheel"])
def installed(request: pytest.FixtureRequest, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that an installation puts on Python's path."""
    wheels = tmp_path_factory.mktemp("wheels")
    hook = "build_wheel" if request.param == "wheel" else "build_editable"
    done = subprocess.run([sys.executable, "-c", BUILD.format(hook), wheels], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unpacked = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(unpacked)
    if request.param == "wheel":
        return unpacked
    (path,) = unpacked.glob("*.pth")
    assert [line for line in path.read_text().split() if line != str(sources)] == []  # a path, and no hook
    return sources


def python(program: str, *arguments: str, path: Path, cwd: Path) -> str:
    """Run ``program`` with ``path`` after the working directory, as an installation's is."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["", str(path)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_is_found_beside_a_clone_of_its_name(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "gptsweep" / "gptsweep").mkdir(parents=True)
    program = "import gptsweep, gptsweep.conf; print(gptsweep.read_sweep.__name__, gptsweep.__file__, gptsweep.conf.__file__)"
    name, package, settings = python(program, path=installed, cwd=tmp_path).split()
    assert (name, package) == ("read_sweep", str(installed / "gptsweep" / "__init__.py"))
    assert Path(settings).is_relative_to(installed)


def test_other_hydra_programs_compose_the_settings_without_a_call_of_their_own(installed: Path, tmp_path: Path) -> None:
    assert python(COMPOSE, path=installed, cwd=tmp_path) == "ckpt.pt\n"


def test_another_hydra_program_sweeps_with_the_settings(installed: Path, tmp_path: Path) -> None:
    small = ("sampling.max_new_tokens=1", "sampling.num_samples=1", "quiet=true", "name=s")
    told = python(PROGRAM, "-m", "seed=1,2", *small, path=installed, cwd=tmp_path)
    assert told.splitlines() == ["seed 1", "seed 2", "Results: outputs/sweeps/s"]
    (tmp_path / "p.csv").write_text("seed\n4\n3\n")
    design = ("hydra/sweeper=points", "hydra.sweeper.file=p.csv", *small[:-1], "name=t")
    told = python(PROGRAM, "-m", *design, path=installed, cwd=tmp_path)
    assert told.splitlines() == ["seed 4", "seed 3", "Results: outputs/sweeps/t"]
