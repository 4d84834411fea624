"""Rows in, completions out: the loop of decode steps, and memory planning. The engine sees token ids, never text."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial

import torch

from ..display import get_logger
from ..free_cores import FreeCores
from ..kernels.abi import PAGE
from ..memory import host_memory
from ..models.architecture import Model
from ..models.linear import has_int8_layers, row_invariant
from ..records import Completion, Row, Sampling
from .backend import BackendProgress, OnStep, Workload
from .kv_cache import KVCache, pages_for
from .model_runner import HAS_KERNELS, ModelRunner
from .scheduler import NewStopMatcher, Scheduler, no_stop_strings, unfinished
from .waiting import WaitingQueue

log = get_logger(__name__)

MOST_ROWS = 256
"""The default maximum of rows decoded together: more gain nothing on the CPUs measured (benchmarks/README.md)."""
MOST_CACHED_PROMPTS = 16
_SHARE_OF_MEMORY = 0.4
_WORTH_A_MEASUREMENT = 50
"""With at least this many windows to read again, measuring one beforehand is cheap relative to the run."""


class Engine:
    """Generates completions for many rows at a time.

    If ``promise`` is true, samples are batch-invariant: a row's completion is bit-identical whatever the other rows,
    ``max_rows`` and the number of threads are.

    Args:
        model: on its device, in its dtype, ready for inference.
        vocab_size: ids from here on (of a padded vocabulary) are never sampled.
        max_rows: the maximum number of rows decoded together; None derives it from free memory.
        stop_matcher: makes, from stop strings, a function that is called with each new token id of a sample and returns
            whether a stop string is complete. Without it no row may have stop strings.
        use_kernels: False computes in plain torch on a CPU, too.
        free_cores: determines the number of threads of each step; None: torch's own.
    """

    def __init__(
        self,
        model: Model,
        *,
        vocab_size: int,
        max_rows: int | None = None,
        stop_matcher: NewStopMatcher = no_stop_strings,
        use_kernels: bool = True,
        free_cores: FreeCores | None = None,
    ) -> None:
        self.model = model
        self.vocab_size = vocab_size
        self.max_rows = max_rows
        self.stop_matcher = stop_matcher
        self.device = model.embedding.device
        self.dtype = model.embedding.dtype
        has_kernels = HAS_KERNELS and self.device.type == "cpu"
        self.use_kernels = use_kernels and has_kernels
        self.use_graphs = self.device.type == "cuda"
        self.promise = self.use_kernels and row_invariant(model)
        self._free_cores = free_cores
        self._measured_window: float | None = None

    def run(self, rows: Iterable[Row], workload: Workload | None = None, on_step: OnStep | None = None) -> Iterator[Completion]:
        """Generate a completion for every row, and yield each as it finishes.

        Rows are consumed as there is room for them, and start in order; those with ``rng=torch`` that share a random stream
        must be adjacent. If memory runs out, the run continues with half as many rows at a time.

        Args:
            rows: the rows; an iterator is consumed no earlier than needed.
            workload: their bounds; None: consume all rows first.
            on_step: called after each step, once its completions have been yielded; an exception from it ends the run.

        Raises:
            ModelError: the model's logits contain NaN or infinity.
            MemoryError, RuntimeError: not even one row fits into memory (`out_of_memory`).
        """
        for finished, progress in self.steps(rows, workload, watched=on_step is not None):
            yield from finished
            if on_step is not None:
                on_step(progress)

    def steps(
        self, rows: Iterable[Row], workload: Workload | None = None, *, watched: bool = True
    ) -> Iterator[tuple[list[Completion], BackendProgress]]:
        """Like `run`, step by step: yield the completions that each step finished, and the progress.

        Args:
            rows, workload: as in `run`.
            watched: whether to measure how long reading windows again will take.
        """
        if workload is None:
            rows = list(rows)
            workload = Workload.of(rows, self.model.block_size)
        waiting = WaitingQueue(rows, self.model.torch_stream)
        max_rows = min(self.max_rows or self._planned_rows(workload), max(1, workload.rows))
        progress = BackendProgress(tokens_total=workload.new_tokens, windows_total=workload.windows)
        if watched and workload.windows >= _WORTH_A_MEASUREMENT:
            progress.window_seconds = self._window_seconds(workload)
        if self._free_cores is not None:
            self._free_cores.begin()
        while waiting:
            scheduler = runner = None  # frees the cache of the last attempt
            try:
                scheduler, runner = self._set_up(waiting, workload, max_rows, progress)
                progress.unfinished = partial(unfinished, waiting, scheduler.running)
                while scheduler.busy:
                    with torch.inference_mode(), self._threads():
                        sequences = scheduler.schedule()
                        runner.forward_and_sample(sequences, scheduler.records)
                        finished = scheduler.postprocess()
                    yield finished, progress
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or max_rows == 1:
                    raise
                max_rows //= 2
                log.warning("out of memory: continuing with %d rows at a time", max_rows)
                if scheduler is not None:
                    scheduler.requeue()

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """Use as many threads as there are free cores during a step; between steps, the caller's setting is in effect."""
        usual = torch.get_num_threads()
        count = usual if self._free_cores is None else min(usual, self._free_cores.count())
        if count == usual:
            yield
            return
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(usual)

    def _set_up(
        self, waiting: WaitingQueue, workload: Workload, max_rows: int, progress: BackendProgress
    ) -> tuple[Scheduler, ModelRunner]:
        """A scheduler and a model runner that share a new cache for ``max_rows`` rows."""
        # The last token of a row is never read, so without a block size this is longer than any row.
        block_size = self.model.block_size or workload.row_tokens
        longest = longest_sequence(self.model, workload)
        self.model.reserve(longest)
        max_cached_prompts = min(MOST_CACHED_PROMPTS, workload.rows)
        cache = KVCache(
            self.model,
            n_positions=longest,
            n_pages=cache_pages(self.model, workload, max_rows) + self.use_graphs,
            n_block_tables=max_rows + max_cached_prompts,
            dtype=self.cache_dtype,
            device=self.device,
        )
        scheduler = Scheduler(
            waiting,
            cache,
            max_rows=max_rows,
            max_cached_prompts=max_cached_prompts,
            block_size=block_size,
            extends_to=self.model.extends_to or workload.row_tokens,
            vocab_size=self.vocab_size,
            stop_matcher=self.stop_matcher,
            progress=progress,
        )
        runner = ModelRunner(
            self.model,
            cache,
            vocab_size=self.vocab_size,
            logits_dtype=self.logits_dtype,
            use_kernels=self.use_kernels,
            use_graphs=self.use_graphs,
        )
        return scheduler, runner

    def _planned_rows(self, workload: Workload) -> int:
        return planned_rows(self.model, workload, self.cache_dtype, available_memory(self.device))

    def _window_seconds(self, workload: Workload) -> float:
        """Seconds to read a whole window. The first call measures it, and logs the total for all windows."""
        if self._measured_window is not None:
            return self._measured_window
        window = tuple(i % self.vocab_size for i in range(self.model.block_size or 0))
        row = Row(prompt_ids=window, sampling=Sampling(max_new_tokens=1, temperature=0.0), noise_key=0)
        seconds = math.inf
        for _ in range(2):  # the first pass of a length includes its setup
            begin = time.perf_counter()
            list(self.run([row]))
            seconds = min(seconds, time.perf_counter() - begin)
            if seconds > 1:
                break
        log.info(
            "%s tokens come after the context of %s: sampling.overflow=crop reads the whole window again for each, about %s"
            " in all; sampling.overflow=rebase is fast, and stop ends a sample there",
            f"{workload.windows:,}", f"{len(window):,}", timedelta(seconds=math.ceil(seconds * workload.windows)),
        )  # fmt: skip
        self._measured_window = seconds
        return seconds

    @property
    def cache_dtype(self) -> torch.dtype:
        """The dtype of keys and values."""
        return cache_dtype(self.dtype, int8=has_int8_layers(self.model), use_kernels=self.use_kernels)

    @property
    def logits_dtype(self) -> torch.dtype:
        """The dtype of logits."""
        return logits_dtype(self.dtype, use_kernels=self.use_kernels)


def cache_dtype(dtype: torch.dtype, *, int8: bool, use_kernels: bool) -> torch.dtype:
    """The dtype of keys and values: the model's if attention supports it, else float32; bfloat16 with int8 layers.

    The rounding to bfloat16 is small compared with that of int8 layers, and reading keys and values takes much of a step.
    """
    return torch.bfloat16 if use_kernels and int8 else logits_dtype(dtype, use_kernels=use_kernels)


def logits_dtype(dtype: torch.dtype, *, use_kernels: bool) -> torch.dtype:
    """The dtype of logits: the model's if sampling supports it, else float32."""
    return torch.float32 if use_kernels and dtype != torch.bfloat16 else dtype


def longest_sequence(model: Model, workload: Workload) -> int:
    """The maximum number of positions of a sequence."""
    most = model.extends_to if workload.extends else model.block_size
    return min(most or workload.row_tokens, workload.row_tokens)


def planned_rows(model: Model, workload: Workload, cache_dtype: torch.dtype, memory: int) -> int:
    """The default maximum number of rows decoded together: as many as fit into a share of ``memory`` (bytes)."""
    positions = PAGE * pages_for(longest_sequence(model, workload))
    position_bytes = 2 * model.n_layer * model.n_kv_heads * model.head_size * cache_dtype.itemsize
    row_bytes = positions * position_bytes + 4 * model.vocab_size
    return max(1, min(MOST_ROWS, int(_SHARE_OF_MEMORY * memory / row_bytes)))


def cache_pages(model: Model, workload: Workload, max_rows: int) -> int:
    """The maximum number of pages that ``max_rows`` rows and the prefix cache need."""
    longest = longest_sequence(model, workload)
    prompt_pages = pages_for(min(longest, workload.prompt_tokens))
    return max_rows * pages_for(longest) + min(MOST_CACHED_PROMPTS, workload.rows) * prompt_pages


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator raised ``error``; torch's CPU allocator has no exception type of its own."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def available_memory(device: torch.device) -> int:
    """Bytes that could be allocated now on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return host_memory()
