"""Installed from a checkout or from a wheel: the package is found wherever one works, its settings too, and it samples."""

from __future__ import annotations

import json
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
SAMPLE = """
import sys
import gptsweep
from gptsweep.__main__ import main

for arguments in (["name=r"], ["-m", "name=s", "seed=1,2", "quiet=true"]):
    sys.argv = ["gptsweep", *arguments, "sampling.num_samples=1", "sampling.max_new_tokens=4"]
    assert main() == 0
print(gptsweep.__file__)
"""
WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
"""
PROGRAM = """
import json
import sys
import hydra
@hydra.main(version_base="1.3", config_path="pkg://gptsweep.conf", config_name="config")
def main(cfg):
    print("seed", cfg.seed)
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
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


def build(hook: str, sources: Path, into: Path) -> Path:
    """The file that a hook of the build backend makes of ``sources``."""
    done = subprocess.run([sys.executable, "-c", BUILD.format(hook), into], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = into.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an installed wheel, which was made of the source distribution, as pip makes it."""
    archive = build("build_sdist", sources, tmp_path_factory.mktemp("sdist"))
    shutil.unpack_archive(archive, inside := tmp_path_factory.mktemp("inside"))
    (unpacked,) = inside.iterdir()
    return unzipped(build("build_wheel", unpacked, tmp_path_factory.mktemp("wheel")), tmp_path_factory)


@pytest.fixture(scope="module")
def editable(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that an editable installation puts on Python's path."""
    unpacked = unzipped(build("build_editable", sources, tmp_path_factory.mktemp("editable")), tmp_path_factory)
    (path,) = unpacked.glob("*.pth")
    assert [line for line in path.read_text().split() if line != str(sources)] == []  # a path, and no hook
    return sources


def unzipped(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip lays into site-packages."""
    into = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(into)
    return into


@pytest.fixture(params=["editable", "wheel"])
def installed(request: pytest.FixtureRequest) -> Path:
    """The directory that an installation puts on Python's path."""
    directory: Path = request.getfixturevalue(request.param)
    return directory


def python(program: str, *arguments: str, path: Path, cwd: Path, **environment: str) -> str:
    """Run ``program`` with ``path`` after the working directory, as an installation's is."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["", str(path)])} | environment,
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
    small = ("sampling.max_new_tokens=1", "sampling.num_samples=1", "quiet=true")
    (tmp_path / "p.csv").write_text("seed\n4\n3\n")
    product = ("-m", "seed=1,2", *small, "name=s")
    design = ("-m", "hydra/sweeper=points", "hydra.sweeper.file=p.csv", *small, "name=t")
    printed = python(PROGRAM, json.dumps([product, design]), path=installed, cwd=tmp_path).splitlines()
    assert printed[:3] == ["seed 1", "seed 2", "Results: outputs/sweeps/s"]
    assert printed[3:] == ["seed 4", "seed 3", "Results: outputs/sweeps/t"]


@pytest.mark.parametrize("machine", ["AVX2", "without numba"])
def test_a_wheel_samples_and_sweeps_outside_the_checkout_and_says_what_it_promises(
    machine: str, wheel: Path, tmp_path: Path
) -> None:
    """Libraries kept to AVX2, as on most processors; and a platform that numba has no wheel for."""
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"} if machine == "AVX2" else {}
    program = SAMPLE if limits else WITHOUT_NUMBA + SAMPLE
    *lines, package = python(program, path=wheel, cwd=tmp_path, **limits).splitlines()
    assert Path(package).is_relative_to(wheel)
    assert lines[-1] == "Results: outputs/sweeps/s"
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/*/*/**/manifest.json")]
    assert len(manifests) == 3
    log = (tmp_path / "outputs/runs/r/gptsweep.log").read_text()
    for manifest in manifests:
        assert manifest["status"] == "complete"
        assert manifest["promise"] is ("promise: false" not in log)
        assert all(f"{name}={value}" in manifest["parts"][0]["made_by"]["limits"] for name, value in limits.items())
    assert manifests[0]["promise"] or machine == "without numba" or sys.platform != "linux"


def test_what_others_made_is_named_in_what_is_shipped(wheel: Path) -> None:
    (metadata,) = wheel.glob("*.dist-info")
    licences = {path.name for path in metadata.rglob("*") if path.is_file()}
    assert {"LICENSE", "NOTICE"} <= licences
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gptsweep/data").iterdir() if not path.name.startswith("__")}
    assert {name for name in data if name not in notice} == set()
