"""Feed damaged files to a reader: guided by coverage if atheris is installed, otherwise drawn by hypothesis.

A target takes bytes, and raises only errors that a user can fix. Any other error is a fault, and so is an input that takes more
than 20 seconds (``--timeout``) or 4 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import atheris
except ImportError:
    atheris = None

Target = Callable[[bytes], None]

END = b"\n--end--\n"
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""A directory in memory for small files; None: the usual directory for temporary files."""


def lay_out(data: bytes, paths: Sequence[Path]) -> None:
    """Write several files from one input, in which `END` separates their contents; empty ones are not written."""
    contents = data.split(END)
    for place, path in enumerate(paths):
        path.unlink(missing_ok=True)
        if place < len(contents) and contents[place]:
            path.write_bytes(contents[place])


def check_message(error: Exception) -> None:
    """Check that an error's message is what a user should see: one line, and not a long one."""
    assert "\n" not in str(error)
    assert len(str(error)) < 2000


def instrumented() -> AbstractContextManager[object]:
    """A context in which imported modules are instrumented for coverage."""
    if atheris is None:
        return contextlib.nullcontext()
    return atheris.instrument_imports(include=["gptsweep", "pickletools", "zipfile"])


def run(target: Target, seeds: Sequence[bytes]) -> None:
    """Fuzz ``target``, beginning with ``seeds``, for as long as the command line says; the first fault ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--timeout", type=int, default=20, help="seconds for one input; more where the machine is often paused")
    seconds, timeout = vars(parser.parse_args()).values()
    if atheris is None:
        drawn(target, seeds, seconds)
        return
    with tempfile.TemporaryDirectory() as corpus:
        for place, seed in enumerate(seeds):
            Path(corpus, str(place)).write_bytes(seed)
        longest = 4 * max(map(len, seeds))
        limits = [f"-timeout={timeout}", "-rss_limit_mb=4096", f"-max_len={longest}", f"-max_total_time={seconds}"]
        artifacts = Path(tempfile.gettempdir(), "gptsweep-fuzz")
        artifacts.mkdir(exist_ok=True)
        atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={artifacts}/", corpus], target)
        atheris.Fuzz()


def drawn(target: Target, seeds: Sequence[bytes], seconds: float) -> None:
    """Damage ``seeds`` in ways that hypothesis draws, for ``seconds`` seconds."""
    end = time.monotonic() + seconds

    @settings(max_examples=500, deadline=None, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def once(data: st.DataObject) -> None:
        content = data.draw(st.sampled_from(seeds))
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content)))
            gone = data.draw(st.integers(0, 8))
            content = content[:place] + data.draw(st.binary(max_size=9)) + content[place + gone :]
        target(content)

    while time.monotonic() < end:
        once()
