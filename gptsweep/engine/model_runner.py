"""The computation of a step: forward passes over the pending tokens of sequences, and sampling."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ModelError
from ..models.architecture import Model
from .attention import AttentionMetadata, paged_attention, paged_attention_by_kernels
from .chain import Rows, mirostat_mu, summed
from .cuda_graphs import DecodeSteps
from .kv_cache import KVCache, Span
from .logprobs import token_logprobs
from .sampler import nanogpt_sample, sample, sample_by_kernel
from .scheduler import RunningRow, SharedSequence

try:
    from ..kernels import runtime as kernels
except ImportError:  # numba has no wheel for this platform
    kernels = None  # type: ignore[assignment]

HAS_KERNELS = kernels is not None
_TOKENS_PER_PASS = 2048

Records = npt.NDArray[Any]


class ModelRunner:
    """Runs a model on sequences whose keys and values are in one cache.

    Args:
        model: on its device, in its dtype, ready for inference.
        cache: has pages for all pending tokens.
        vocab_size: ids from here on are never sampled.
        logits_dtype: the dtype of the logits that the kernel ``sample`` reads.
        use_kernels: compute attention and sampling with CPU kernels instead of plain torch.
        use_graphs: capture decode steps as CUDA graphs.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        *,
        vocab_size: int,
        logits_dtype: torch.dtype,
        use_kernels: bool,
        use_graphs: bool,
    ) -> None:
        self.model, self.cache, self.vocab_size = model, cache, vocab_size
        self.logits_dtype, self.use_kernels = logits_dtype, use_kernels
        self.device = model.embedding.device
        if use_kernels:
            dtype = cache.keys.dtype
            self.store, self.attend = kernels.Kernel("store", dtype), kernels.Kernel("attend", dtype)
            self.attend.set(wide_tiles=kernels.has_wide_vectors())
            self.sampler = kernels.Kernel("sample", logits_dtype)
        self.decode = DecodeSteps(model, cache) if use_graphs else None

    def forward_and_sample(self, sequences: list[SharedSequence], records: Records) -> None:
        """Read the pending tokens, and write every row's next token and its statistics into its record.

        Args:
            sequences: from `Scheduler.schedule`; not modified.
            records: `ROW` records ``[slots]``.

        Raises:
            ModelError: the logits contain NaN or infinity.
        """
        self._sample(self._forward(sequences), sequences, records)

    def _forward(self, sequences: list[SharedSequence]) -> Tensor:
        """Logits ``[sequences, vocab_size]`` after the last pending token of each."""
        ends = {sequence.block_table: sequence.length + len(sequence.pending) for sequence in sequences}
        last = []
        for spans, ids, before in _passes(sequences):
            hidden = self._hidden(ids, before, AttentionMetadata.of(spans))
            last.append(hidden[[i for i, span in enumerate(spans) if span.end == ends[span.block_table]]])
        return self.model.logits(torch.cat(last))

    def _hidden(self, ids: list[int], before: list[int], metadata: AttentionMetadata) -> Tensor:
        """Hidden states ``float32 [spans, n_embd]`` after the last token of each span of one pass."""
        if self.decode is not None and len(ids) == len(metadata.kept):
            return self.decode(ids, metadata, before)
        if self.use_kernels:
            attend = paged_attention_by_kernels(self.cache, metadata, self.store, self.attend)
        else:
            attend = paged_attention(self.cache, metadata)
        positions, kept = (torch.from_numpy(places).to(self.device) for places in (metadata.positions, metadata.kept))
        extra: dict[str, Any] = {}
        if self.model.reads_previous:
            previous = np.roll(ids, 1)
            previous[[0, *(metadata.kept[:-1] + 1)]] = before
            extra["previous"] = torch.from_numpy(previous).to(self.device)
        return self.model.hidden(torch.tensor(ids, device=self.device), positions, attend, kept, **extra)

    def _sample(self, logits: Tensor, sequences: list[SharedSequence], records: Records) -> None:
        """Sample every row's next token from its sequence's logits ``[sequences, vocab_size]``."""
        placed = [(running, place) for place, sequence in enumerate(sequences) for running in sequence.rows]
        slots = [running.slot for running, _ in placed]
        records["logits_row"][slots] = [place for _, place in placed]
        records["position"][slots] = [len(running.token_ids) for running, _ in placed]
        for running, _ in placed:
            if running.adjustments is not None:
                running.adjustments.update(records[running.slot], running.row.sampling)
            if running.row.sampling.mirostat_tau is not None:
                tokens, _, sampler_logprob, _, _ = running.sums
                records["mirostat_mu"][running.slot] = mirostat_mu(running.row.sampling, tokens, sampler_logprob)
        with_counter = [running for running, _ in placed if running.stream.generator is None]
        by_kernel = [self.use_kernels and running.kernel_samples for running in with_counter]
        self._sample_by_kernel(list(itertools.compress(with_counter, by_kernel)), logits, records)
        self._sample_plainly([r for r, fast in zip(with_counter, by_kernel, strict=True) if not fast], logits, records)
        for running, _ in placed:
            if running.stream.generator is not None:
                row_logits = logits[records["logits_row"][running.slot]].float().cpu()
                self._sample_from_stream(running, running.stream.generator, row_logits, records)
        done = records[slots]
        if not np.isfinite(done["logprob"] + done["entropy"]).all():
            dtype = str(self.model.embedding.dtype).removeprefix("torch.")
            works = "check the checkpoint" if dtype == "float32" else "try float32, or check the checkpoint"
            raise ModelError("device.dtype", dtype, f"the model's logits are not numbers; {works}")
        recorded = [running for running, _ in placed if running.row.sampling.logprobs]
        if recorded:
            counts = [running.row.sampling.logprobs for running in recorded]
            some = records[[running.slot for running in recorded]]
            for running, found in zip(recorded, token_logprobs(logits[:, : self.vocab_size], some, counts), strict=True):
                running.logprobs.append(found)

    def _sample_by_kernel(self, rows: list[RunningRow], logits: Tensor, records: Records) -> None:
        """Sample rows with ``rng=counter`` whose steps are all in the kernel."""
        if rows:
            slots = np.array([running.slot for running in rows], np.int64)
            sample_by_kernel(self.sampler, logits.to(self.logits_dtype).contiguous(), records, slots, self.vocab_size)

    def _sample_plainly(self, rows: list[RunningRow], logits: Tensor, records: Records) -> None:
        """Sample the other rows with ``rng=counter`` by the plain chain."""
        if rows:
            slots = np.array([running.slot for running in rows], np.int64)
            some = records[slots]
            sample(logits[:, : self.vocab_size], some, _settings(rows, some, logits.device))
            records[slots] = some

    def _sample_from_stream(self, running: RunningRow, generator: torch.Generator, logits: Tensor, records: Records) -> None:
        """Sample a row with ``rng=torch`` from its logits ``float32 [vocab_size]`` on the CPU."""
        record = records[running.slot : running.slot + 1]
        if not logits.isfinite().all():
            record["logprob"] = torch.nan
            return
        logits = logits.clone()
        logits[self.vocab_size :] = -torch.inf
        logprobs = logits.double().log_softmax(-1)
        token, sampler_logprob, survivors = nanogpt_sample(logits, _settings([running], record, logits.device), generator)
        record["token"], record["sampler_logprob"], record["survivors"] = token, sampler_logprob, survivors
        record["logprob"] = float(logprobs[token])
        record["entropy"] = float(summed(torch.special.entr(logprobs.exp())))


def _settings(rows: list[RunningRow], records: Records, device: torch.device) -> Rows:
    return Rows([running.row.sampling for running in rows], [running.adjustments for running in rows], records, device)


def _passes(sequences: list[SharedSequence]) -> Iterator[tuple[list[Span], list[int], list[int]]]:
    """Split the pending tokens of all sequences into passes of bounded size: spans, their ids, and the id before each."""
    spans: list[Span] = []
    ids: list[int] = []
    before: list[int] = []
    for sequence in sequences:
        done = 0
        while done < len(sequence.pending):
            taken = min(len(sequence.pending) - done, _TOKENS_PER_PASS - len(ids))
            begin = sequence.length + done
            spans.append(Span(sequence.block_table, begin, begin + taken))
            before.append(sequence.pending[done - 1] if done else sequence.previous)
            ids += sequence.pending[done : done + taken]
            done += taken
            if len(ids) == _TOKENS_PER_PASS:
                yield spans, ids, before
                spans, ids, before = [], [], []
    if spans:
        yield spans, ids, before
