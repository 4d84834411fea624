"""Models from the hub: fetched once, kept, picked up after a cut; and words that help where the hub cannot be reached.

A small hub on loopback serves the files. Each call is a process of its own, because the hub library reads its settings when it
is imported. The library waits before it tries again; these processes do not, so that the tests are quick.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from model_files import TINY, random_gpt, save_hf

from gptsweep.errors import GptsweepError, ModelError
from gptsweep.models.files.hf import open_hf
from gptsweep.models.files.places import LocalFiles, files_of
from gptsweep.models.files.tokenizers import GPT2Tokenizer
from gptsweep.models.registry import open_checkpoint
from gptsweep.records import ModelSource

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = dataclasses.replace(TINY, vocab_size=50257, n_embd=130, n_layer=1)  # 26 MB: the library reads 10 MiB at a time

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["test_hub"])  # torch is imported once; the hub library by each process, with its own settings


def open_model(
    environment: dict[str, str], out: Path, err: Path, name: str, path: str | None = None, revision: str | None = None
) -> None:
    """Open a model with ``environment``, and what is printed in ``out`` and ``err``: for a process of its own."""
    assert "huggingface_hub" not in sys.modules
    for descriptor, file in enumerate((out, err), start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    time.sleep = lambda seconds: None
    try:
        checkpoint = open_checkpoint(ModelSource(name=name, path=path, revision=revision))
    except GptsweepError as error:
        sys.exit(f"error: {error}")
    print(checkpoint.fingerprint, type(checkpoint.tokenizer).__name__)


class Hub(ThreadingHTTPServer):
    """Serves ``files`` by ``repo/name`` as the hub does; ``cuts`` answers to GET end in the middle."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.moved: dict[str, str] = {}
        self.cuts = 0
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo: str, directory: Path) -> None:
        self.files |= {f"{repo}/{path.name}": path.read_bytes() for path in directory.iterdir()}

    def gets(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub = self.server
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        repo, _, rest = self.path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        commit = COMMIT if revision == "main" else hashlib.sha1(revision.encode()).hexdigest()
        repo = repo if revision == "main" else f"{repo}@{revision}"
        data = hub.files.get(f"{repo}/{name}")
        if repo in hub.moved:
            return self.empty(307, {"Location": f"/{hub.moved[repo]}/resolve/main/{name}"})
        if repo in hub.gated:
            return self.empty(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if data is None and not any(path.startswith(f"{repo}/") for path in hub.files):
            return self.empty(404, {"X-Error-Code": "RepoNotFound" if revision == "main" else "RevisionNotFound"})
        if data is None:
            return self.empty(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body and hub.cuts and len(data) > 1_000_000:
            hub.cuts -= 1
            self.wfile.write(data[start : start + (len(data) - start) * 2 // 3])
            self.close_connection = True
        elif body:
            self.wfile.write(data[start:])
        return None

    def empty(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf(tmp_path_factory.mktemp("model"), random_gpt(CONFIG))


@pytest.fixture(scope="module")
def fingerprint(model: Path) -> str:
    return open_hf(LocalFiles(model, "", ""), GPT2Tokenizer()).fingerprint


@dataclasses.dataclass
class Machine:
    """A user's machine: a home with a cache, and the hub it knows."""

    home: Path
    endpoint: str
    calls: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def open(self, *source: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
        kept |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        number = next(self.calls)
        out, err = (self.home.with_name(f"{number}.{name}") for name in ("out", "err"))
        process = PROCESSES.Process(target=open_model, args=(kept | environment, out, err, *source))
        process.start()
        process.join(900)
        assert process.exitcode is not None
        return subprocess.CompletedProcess(source, process.exitcode, out.read_text(), err.read_text())

    def error(self, *source: str, **environment: str) -> str:
        """The one line a failed call ends with."""
        done = self.open(*source, **environment)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("error: "), done.stderr
        return line.removeprefix("error: ")


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "home", hub.url)


def test_gpt2_is_fetched_once_and_kept(hub: Hub, machine: Machine, model: Path, fingerprint: str) -> None:
    hub.add("openai-community/gpt2", model)
    first = machine.open("gpt2")
    assert first.stdout.split() == [fingerprint, "GPT2Tokenizer"], first.stderr
    assert sorted(hub.gets()) == ["config.json", "model.safetensors"]
    assert all("/openai-community/gpt2/resolve/main/" in path for _, path, _ in hub.requests), (
        "nothing else is asked of the hub"
    )
    assert machine.open("gpt2").stdout == first.stdout
    assert len(hub.gets()) == 2
    hub.shutdown()
    hub.server_close()
    assert machine.open("gpt2").stdout == first.stdout, "the cache serves where the hub is gone"
    assert machine.open("gpt2", HF_HUB_OFFLINE="1").stdout == first.stdout


def test_a_cut_download_goes_on_where_it_was_cut(hub: Hub, machine: Machine, model: Path, fingerprint: str) -> None:
    hub.add("openai-community/gpt2-xl", model)
    hub.cuts = 2
    assert machine.open("gpt2-xl").stdout.split()[:1] == [fingerprint]
    ranges = [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert ranges[0] is None
    assert len(ranges) == 3
    assert all(wanted and int(wanted[6:-1]) >= 10 * 2**20 for wanted in ranges[1:])


def test_a_download_that_keeps_being_cut_is_a_clear_error_and_leaves_nothing_half(
    hub: Hub, machine: Machine, model: Path, fingerprint: str
) -> None:
    hub.add("openai-community/gpt2", model)
    hub.cuts = 1000
    line = machine.error("gpt2")
    assert line.startswith("model=gpt2: fetching model.safetensors of openai-community/gpt2 failed (")
    assert "run again, or fetch it on a machine with network access: hf download openai-community/gpt2" in line
    assert "model=hf model.path=gpt2" in line
    hub.cuts = 0
    assert machine.open("gpt2").stdout.split()[:1] == [fingerprint]


def test_without_network_the_error_says_how_to_fetch_beforehand(hub: Hub, machine: Machine) -> None:
    hub.shutdown()
    hub.server_close()
    line = machine.error("gpt2-medium")
    assert hub.requests == []
    assert "ConnectionRefusedError" in line, "the library, and its retries, were not asked"
    repo = "openai-community/gpt2-medium"
    assert line.startswith(f"model=gpt2-medium: config.json of {repo} is not in the cache and the hub cannot be reached (")
    files = "'*.json' '*.jinja' '*.safetensors' merges.txt"
    assert f"hf download {repo} --include {files} --local-dir gpt2-medium; then use:" in line
    line = machine.error("hf", "someone/model", HF_HUB_OFFLINE="1")
    assert "model.path=someone/model: config.json of someone/model is not in the cache and HF_HUB_OFFLINE is set; fetch" in line
    assert "there is no directory someone/model here" in line


def test_a_model_that_the_hub_does_not_give_is_a_clear_error(hub: Hub, machine: Machine, model: Path, tmp_path: Path) -> None:
    hub.add("someone/other", tmp_path)
    assert "nobody/nothing is neither a directory here nor a model on the hub" in machine.error("hf", "nobody/nothing")
    hub.gated = {"someone/gated"}
    assert "someone/gated is gated; ask for access" in machine.error("hf", "someone/gated")
    hub.files["someone/bare/config.json"] = (model / "config.json").read_bytes()
    line = machine.error("hf", "someone/bare")
    assert "someone/bare has no model.safetensors, model.safetensors.index.json or pytorch_model.bin" in line
    assert "neither a directory here nor a model" in machine.error("hf", "some--one/x..y")


def test_a_tokenizer_that_was_never_cached_is_not_guessed(hub: Hub, machine: Machine, model: Path, fingerprint: str) -> None:
    """The hub's word that there is none makes GPT-2's encoding right, offline too; without it, it may only not be cached."""
    hub.add("someone/tuned", model)
    online = machine.open("hf", "someone/tuned")
    assert online.stdout.split() == [fingerprint, "GPT2Tokenizer"], online.stderr
    assert machine.open("hf", "someone/tuned", HF_HUB_OFFLINE="1").stdout == online.stdout
    shutil.rmtree(machine.home / "hub/models--someone--tuned/.no_exist")
    line = machine.error("hf", "someone/tuned", HF_HUB_OFFLINE="1")
    assert (
        "tokenizer.json, or vocab.json with merges.txt of someone/tuned is not in the cache and HF_HUB_OFFLINE is set" in line
    )


def test_what_nanogpt_has_fetched_is_not_fetched_again(hub: Hub, machine: Machine, model: Path, fingerprint: str) -> None:
    """nanoGPT asks for "gpt2", so that is the name in the cache, the hub's redirect to the new name notwithstanding."""
    hub.add("openai-community/gpt2", model)
    hub.moved["gpt2"] = "openai-community/gpt2"
    assert machine.open("hf", "gpt2").stdout.split()[:1] == [fingerprint]
    assert (machine.home / "hub" / "models--gpt2").is_dir()
    hub.shutdown()
    hub.server_close()
    assert machine.open("gpt2").stdout.split()[:1] == [fingerprint]


def test_a_revision_is_another_model_and_one_that_is_not_there_is_reported(
    hub: Hub, machine: Machine, model: Path, fingerprint: str, tmp_path: Path
) -> None:
    early = save_hf(tmp_path / "early", random_gpt(CONFIG, seed=1))
    hub.add("someone/tiny", model)
    hub.add("someone/tiny@step1000", early)
    then = machine.open("hf", "someone/tiny", "step1000")
    assert then.stdout.split()[:1] == [open_hf(LocalFiles(early, "", ""), GPT2Tokenizer()).fingerprint], then.stderr
    assert machine.open("hf", "someone/tiny").stdout.split()[:1] == [fingerprint]
    line = machine.error("hf", "someone/tiny", "step7")
    assert line.startswith("model.revision=step7: someone/tiny has no such branch, tag or commit")
    assert "--revision step8 " in machine.error("hf", "someone/tiny", "step8", HF_HUB_OFFLINE="1")
    with pytest.raises(ModelError, match=r"model.revision=step1000: model.path=.* is a directory here"):
        files_of(ModelSource(name="hf", path=str(early), revision="step1000"))
