"""What a user would lose: kernels that are ready at once, on a machine that keeps nothing as on one that does."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import gptsweep
from gptsweep.kernels import codegen
from gptsweep.kernels import runtime as kernels

CACHES = os.environ["XDG_CACHE_HOME"]
"""Of all tests: machine code of the package's kernels is there."""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return kernels.cache_directory()


def works(name: str = "store", dtype: str = "float32") -> bool:
    address, _ = kernels._loaded.__wrapped__(name, dtype)
    return bool(address)


def no_compiler(*_: object) -> None:
    raise AssertionError("compiled again")


def test_the_package_holds_the_code_of_its_loops() -> None:
    with zipfile.ZipFile(kernels.SHIPPED) as shipped:
        digest = shipped.comment.decode().split()[0]
        assert set(shipped.namelist()) == {f"{name}-{dtype}" for name, dtype in codegen.LOOPS}
    assert digest == kernels.loops_digest(), "the loops have changed since: run scripts/compile_kernels.py"


def test_the_digest_covers_every_file_that_the_code_is_made_of() -> None:
    folder = Path(kernels.__file__).parent
    assert {*kernels.SOURCES} == {path.name for path in folder.glob("*.py")} - {"__init__.py", "runtime.py"}


COMPARE = """
import contextlib, io, json, pathlib, sys
import compile_kernels
shipped, others = map(pathlib.Path, sys.argv[1:])
messages = {}
for other in others.iterdir():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print(compile_kernels.difference(other, shipped))
    messages[other.name] = printed.getvalue()
print(json.dumps(messages))
"""
CHANGES = ("none", "sources", "code", "kernels", "compiler")


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the check finds where an archive has one of the `CHANGES`."""
    others = tmp_path_factory.mktemp("archives")
    for change in CHANGES:
        with zipfile.ZipFile(kernels.SHIPPED) as shipped, zipfile.ZipFile(others / change, "w") as archive:
            digest, triple, compilers = shipped.comment.decode().split(maxsplit=2)
            digest = "0" * 64 if change == "sources" else digest
            archive.comment = f"{digest} {triple} {'numba 0' if change == 'compiler' else compilers}".encode()
            for name in shipped.namelist()[change == "kernels" :]:
                archive.writestr(name, shipped.read("store-float32" if change == "code" else name))
    scripts = Path(__file__).parents[1] / "scripts"  # in a process of its own: the script sets numba's processor
    run = subprocess.run([sys.executable, "-c", COMPARE, kernels.SHIPPED, others], cwd=scripts, capture_output=True, text=True)
    if "bitcode parsing error" in run.stderr:
        pytest.skip("numba's LLVM is older than the archive's, which then serves nobody here: numba compiles the loops")
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout))


@pytest.mark.parametrize("change", CHANGES)
def test_the_check_tells_an_archive_that_is_not_of_its_sources(change: str, differences: dict[str, str]) -> None:
    """`.ci/run` has it compare the package's archive with one made anew, which takes too long here."""
    message = differences[change].strip()
    triple, compilers = zipfile.ZipFile(kernels.SHIPPED).comment.decode().split(maxsplit=2)[1:]
    if change == "none":
        assert not message
    elif change == "compiler":
        assert message == f"made for {triple} with numba 0, not {triple} with {compilers}: the code itself is not compared"
    else:
        found = {
            "sources": "it was made of other sources",
            "code": "LLVM's code of store-bfloat16 is another",
            "kernels": "it has activate-bfloat16, ",
        }
        assert message.startswith(found[change])


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_packages_code_gives_the_samples_of_its_loops(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def samples() -> list[gptsweep.Sample]:
        monkeypatch.setattr(kernels, "_loaded", functools.cache(kernels._loaded.__wrapped__))
        lm = gptsweep.load(dtype=dtype)
        common = {"num_samples": 3, "max_new_tokens": 40}
        settings: list[dict[str, Any]] = [
            {"top_k": 20},
            {"top_k": None, "temperature": 1.3},
            {"top_p": 0.8, "min_p": 0.01},
            {"temperature": 0, "repetition_penalty": 1.3, "logit_bias": {5: 1.5}},
        ]
        return [sample for more in settings for sample in lm.generate(["ROMEO:", "\n"], **common, **more)]

    monkeypatch.setenv("XDG_CACHE_HOME", CACHES)
    shipped = samples()
    monkeypatch.setattr(kernels, "SHIPPED", tmp_path / "missing")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert samples() == shipped


def test_a_kernel_is_made_once_a_machine(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = kernels._machine_code("store", "float32")
    assert len(list(empty_cache.iterdir())) == 1
    monkeypatch.setattr(kernels, "_module", no_compiler)
    assert kernels._machine_code("store", "float32") == made
    assert works()


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_in_the_cache_is_made_anew(damage: bytes | None, empty_cache: Path) -> None:
    made = kernels._machine_code("store", "float32")
    (file,) = empty_cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if damage is None else damage)
    assert kernels._machine_code("store", "float32") == made
    assert file.read_bytes() == whole


def test_a_cache_directory_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert works()


def poisoned(directory: Path) -> Path:
    """The file that the kernel would be taken from, with another kernel's code and a hash that fits."""
    kernels._machine_code("store", "float32")
    (file,) = directory.iterdir()
    code = b"somebody else's code"
    file.write_bytes(hashlib.sha256(code).digest() + code)
    return file


def test_code_that_others_could_have_put_in_the_cache_is_not_run(empty_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = poisoned(empty_cache)
    empty_cache.chmod(0o777)
    assert works()
    assert b"somebody" not in file.read_bytes()
    assert empty_cache.stat().st_mode & 0o777 == 0o700
    assert not caplog.records, "the directory is the user's own from now on"


def test_the_cache_is_its_users_alone_whatever_the_umask(empty_cache: Path) -> None:
    before = os.umask(0)
    try:
        kernels._machine_code("store", "float32")
    finally:
        os.umask(before)
    assert empty_cache.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in empty_cache.iterdir()] == [0o600]


@pytest.mark.parametrize("whose", ["another user's", "a link", "a link to the file"])
def test_a_cache_that_is_not_the_users_own_is_done_without_and_that_is_reported_once(
    whose: str, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = poisoned(empty_cache)
    content = file.read_bytes()
    kernels._say_not_kept.cache_clear()
    if whose == "another user's":
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    elif whose == "a link":
        empty_cache.rename(tmp_path / "theirs")
        empty_cache.symlink_to(tmp_path / "theirs")
    else:
        file.rename(tmp_path / "theirs")
        file.symlink_to(tmp_path / "theirs")
    assert works()
    assert works("attend")
    if whose == "a link to the file":
        assert not file.is_symlink(), "replaced by the user's own"
        assert (tmp_path / "theirs").read_bytes() == content
    else:
        assert file.read_bytes() == content
        assert caplog.text.count("its directory is not yours alone") == 1


def test_a_user_without_a_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(kernels.Path, "home", homeless)
    assert works()


@pytest.mark.parametrize("shipped", ["missing", "damaged", "of other loops"])
def test_without_the_packages_code_the_loops_are_compiled(
    shipped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kernels._machine_code("store", "float32")
    other = tmp_path / "kernels.zip"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(kernels, "SHIPPED", other)
    if shipped == "damaged":
        other.write_bytes(b"PK")
    elif shipped == "of other loops":
        with zipfile.ZipFile(other, "w") as archive:
            archive.comment = b"0000 x86_64 numba 0"
            archive.writestr("store-float32", b"garbage")
    assert kernels._machine_code("store", "float32") == made


def test_a_kernel_has_room_for_as_many_threads_as_there_come_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = kernels._Scratch()
    monkeypatch.setattr(kernels, "_scratch", scratch)
    kernel = kernels.Kernel("sample", torch.float32)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 2):
            torch.set_num_threads(count)
            kernel(n_rows=0, chunk=1, scratch=100)
            assert len(scratch.memory) >= 100 * count
    finally:
        torch.set_num_threads(threads)
