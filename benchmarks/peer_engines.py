"""One engine, one job, one process: ``python peer_engines.py JOB_JSON``, run by peers.py in an environment with that engine.

Each function below loads the model, warms up, and returns its measurements. All take and return token ids; the time is from the
first prompt to the last token, prefill included.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

RESULT = "RESULT "
"""The line of standard output that holds the result, as JSON."""
SAME_OF = 16
"""The number of samples to test batch invariance with."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to generate, and with which engine; ``batch`` None leaves the number of rows decoded together to the engine."""

    engine: str
    dtype: str = "bfloat16"
    rows: int = 256
    batch: int | None = None
    prompt: int = 32
    tokens: int = 64
    top_k: int | None = 200
    shape: str = "gpt2"
    variant: str = ""
    threads: int = 2
    models: str = ""

    @property
    def name(self) -> str:
        """The job's name in tables; jobs that differ only in ``batch`` share it."""
        return " ".join(filter(None, (self.engine, self.dtype, self.variant)))

    @property
    def warm_up(self) -> Job:
        """The same rows with two tokens each, so that buffers, kernels and threads exist afterwards."""
        return replace(self, tokens=2)

    def directory(self, made_by: str) -> Path:
        """The directory of the model in the format that ``made_by`` writes."""
        return Path(self.models) / f"{self.shape}-{made_by}"

    def settings(self) -> list[tuple[float, int | None, int]]:
        """Temperature, top_k and seed of each row: those of `shapes.grid`, point after point."""
        points = product((0.7, 0.8, 0.9, 1.0), (self.top_k, self.top_k and self.top_k // 4), (1, 2))
        return [point for point in points for _ in range(-(-self.rows // 16))][: self.rows]

    def batches(self) -> Iterator[int]:
        """The number of rows of each call, for engines that decode all rows of a call in one batch."""
        batch = self.batch or self.rows
        for begin in range(0, self.rows, batch):
            yield min(batch, self.rows - begin)


GGUF_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "int8": "Q8_0"}
"""The names of dtypes of linear layers in llama.cpp's files."""

Measured = dict[str, Any]


def timed(job: Job, run: Callable[[Job], int]) -> Measured:
    """Warm up, then run: the number of tokens generated and the seconds they took."""
    run(job.warm_up)
    begin = time.perf_counter()
    tokens = run(job)
    return {"generated": tokens, "seconds": time.perf_counter() - begin}


def prompt_of(job: Job) -> list[int]:
    """The prompt of `shapes.grid`, whose `LEAST_VOCABULARY` the peers' environments cannot import."""
    return Random(1).choices(range(49152), k=job.prompt)


# -- this project's environment ----------------------------------------------------------------------------------------------


def gptsweep(job: Job) -> Measured:
    """This project. ``limit`` is the speed of its linear layers alone on the same number of rows, before and after the run.

    In the variant ``independent`` each row has noise of its own; otherwise points share it, as in a sweep. ``entropy`` is the
    mean at temperature 1.
    """
    from profile_step import linear_limit
    from shapes import grid, random_model

    from gptsweep.api import load
    from gptsweep.engine.engine import Engine

    # Shapes that no peer runs are drawn in memory: GPT-2 XL would be a file of 6 GB.
    if job.shape == "gpt2":
        engine = load(job.directory("hf"), device="cpu", dtype=job.dtype, max_rows=job.batch).engine
    else:
        model = random_model(job.shape, job.dtype)
        engine = Engine(model, vocab_size=model.config.vocab_size, max_rows=job.batch)

    entropies: list[float] = []

    def completions(wanted: Job) -> list[tuple[int, ...]]:
        made = grid(wanted.rows, wanted.prompt, wanted.tokens, wanted.top_k, independent=wanted.variant == "independent")
        made = [replace(row, prompt_ids=tuple(token % engine.vocab_size for token in row.prompt_ids)) for row in made]
        done = {completion.row: completion for completion in engine.run(made)}
        entropies[:] = [completion.entropy_mean or 0.0 for completion in done.values()]
        return [done[row].token_ids for row in made]

    if job.variant == "promise":
        together = completions(job)[:SAME_OF]
        first = grid(job.rows, job.prompt, job.tokens, job.top_k)[:SAME_OF]
        return same(together, [completion.token_ids for row in first for completion in engine.run([row])])
    rows_together = min(job.rows, job.batch or 256)
    limits = [linear_limit(engine.model, rows_together, 5)]
    measured = timed(job, lambda wanted: sum(map(len, completions(wanted))))
    limits.append(linear_limit(engine.model, rows_together, 5))
    return measured | {"limit": 2 * rows_together / sum(limits), "entropy": fmean(entropies)}


def nanogpt(job: Job) -> Measured:
    """A plain sampling loop like nanoGPT's: the model reads the whole window for every token, in float32."""
    import torch
    from shapes import random_weights

    model = random_weights(job.shape)
    block_size, vocab_size = model.config.block_size, model.config.vocab_size

    @torch.inference_mode()
    def run(wanted: Job) -> int:
        for batch in wanted.batches():
            ids = torch.tensor([prompt_of(wanted)] * batch) % vocab_size
            for _ in range(wanted.tokens):
                window = ids[:, -block_size:]
                hidden = model.hidden(window, torch.arange(window.shape[1]), model.attend_within)
                logits = model.logits(hidden[:, -1]) / 0.8
                if wanted.top_k:
                    least = logits.topk(min(wanted.top_k, vocab_size)).values[:, -1:]
                    logits[logits < least] = -torch.inf
                ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], 1)
        return wanted.rows * wanted.tokens

    return timed(job, run)


# -- the peers' environment --------------------------------------------------------------------------------------------------


def openvino(job: Job) -> Measured:
    """OpenVINO GenAI's continuous batching, with each row as a request with its own settings.

    The variant ``prefix`` switches prefix caching on; ``shared`` makes the samples of a point one request with
    ``num_return_sequences``, so that they share their prompt.
    """
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.max_num_seqs = job.batch or 256
    scheduler.max_num_batched_tokens = max(256, scheduler.max_num_seqs, job.prompt)
    scheduler.enable_prefix_caching = job.variant == "prefix"
    precision = {"float32": "f32"}.get(job.dtype, "bf16")
    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": job.threads}
    directory = job.directory("openvino-int8" if job.dtype == "int8" else "openvino")
    pipeline = genai.ContinuousBatchingPipeline(str(directory), scheduler, "CPU", properties)
    prompt = ov.Tensor(np.array([prompt_of(job)], np.int64))

    def request(tokens: int, temperature: float, top_k: int | None, seed: int, samples: int = 1) -> Any:
        config = genai.GenerationConfig()
        config.do_sample, config.ignore_eos, config.max_new_tokens = True, True, tokens
        config.temperature, config.rng_seed, config.num_return_sequences = temperature, seed, samples
        if top_k:
            config.top_k = top_k
        return config

    def completions(wanted: Job) -> list[list[int]]:
        settings = wanted.settings()
        if wanted.variant == "shared":
            points = list(dict.fromkeys(settings))
            requests = [request(wanted.tokens, *point, samples=settings.count(point)) for point in points]
        else:
            requests = [request(wanted.tokens, t, k, 1000 * seed + i) for i, (t, k, seed) in enumerate(settings)]
        done = pipeline.generate([prompt] * len(requests), requests)
        return [list(ids) for result in done for ids in result.m_generation_ids]

    if job.variant == "promise":
        together = completions(job)[:SAME_OF]
        alone = []
        for i, (temperature, top_k, seed) in enumerate(job.settings()[:SAME_OF]):
            config = request(job.tokens, temperature, top_k, 1000 * seed + i)
            alone.append(list(pipeline.generate([prompt], [config])[0].m_generation_ids[0]))
        return same(together, alone)
    return timed(job, lambda wanted: sum(map(len, completions(wanted))))


def ctranslate2(job: Job) -> Measured:
    """CTranslate2, with the same settings for all rows, as it takes none per row."""
    import ctranslate2 as ct2

    directory = job.directory("ctranslate2")
    model = ct2.Generator(str(directory), device="cpu", compute_type=job.dtype, inter_threads=1, intra_threads=job.threads)
    words = {token: word for word, token in json.loads((job.directory("hf") / "vocab.json").read_text()).items()}
    prompt = [words[token] for token in prompt_of(job)]

    def run(wanted: Job) -> int:
        tokens = 0
        for batch in wanted.batches():
            done = model.generate_batch(
                [prompt] * batch,
                min_length=wanted.tokens,
                max_length=wanted.tokens,
                sampling_topk=wanted.top_k or 0,
                sampling_temperature=0.8,
                include_prompt_in_result=False,
            )
            tokens += sum(len(result.sequences_ids[0]) for result in done)
        return tokens

    return timed(job, run)


def transformers(job: Job) -> Measured:
    """Hugging Face's `generate`, with the same settings for all rows."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.directory("hf"), dtype=getattr(torch, job.dtype)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def run(wanted: Job) -> int:
        tokens = 0
        for batch in wanted.batches():
            ids = torch.tensor([prompt_of(wanted)] * batch)
            settings = {"do_sample": True, "temperature": 0.8, "top_k": wanted.top_k or 0, "max_new_tokens": wanted.tokens}
            done = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
            tokens += batch * (done.shape[1] - wanted.prompt)
        return tokens

    return timed(job, run)


# -- environments of their own -----------------------------------------------------------------------------------------------


def llamacpp(job: Job) -> Measured:
    """llama.cpp through its C API, like its example of batched decoding: ``batch`` sequences at a time.

    The prompt is read once, and its keys and values are shared; every row has a sampler of its own.
    """
    import llama_cpp as llama

    llama.llama_backend_init()
    file = job.directory(f"gguf-{GGUF_TYPES[job.dtype]}") / "model.gguf"
    model = llama.llama_model_load_from_file(str(file).encode(), llama.llama_model_default_params())
    together, prompt = job.batch or job.rows, prompt_of(job)
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.kv_unified = job.prompt + together * (job.tokens + 1), together, True
    params.n_batch = params.n_ubatch = max(512, together)
    params.n_threads = params.n_threads_batch = job.threads
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError(f"llama.cpp makes no context of {together} sequences")
    memory = llama.llama_get_memory(context)
    batch = llama.llama_batch_init(max(params.n_batch, together), 0, 1)

    def decode(tokens: list[int], positions: list[int], sequences: list[int], wanted: list[bool]) -> None:
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, logits) in enumerate(zip(tokens, positions, sequences, wanted, strict=True)):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, logits
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if status := llama.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode gave {status}")

    def sampler(temperature: float, top_k: int | None, seed: int) -> Any:
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if top_k:
            llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_top_k(top_k))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(temperature))
        llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(seed))
        return chain

    def run(wanted: Job) -> int:
        settings, begin = wanted.settings(), 0
        for count in wanted.batches():
            llama.llama_memory_clear(memory, True)
            samplers = [sampler(t, k, 1000 * seed + i) for i, (t, k, seed) in enumerate(settings[begin : begin + count], begin)]
            for first in range(0, len(prompt), params.n_batch):
                some = prompt[first : first + params.n_batch]
                last = [first + i == len(prompt) - 1 for i in range(len(some))]
                decode(some, list(range(first, first + len(some))), [0] * len(some), last)
            for sequence in range(1, count):
                llama.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
            drawn = [llama.llama_sampler_sample(each, context, -1) for each in samplers]
            for step in range(wanted.tokens - 1):
                decode(drawn, [len(prompt) + step] * count, list(range(count)), [True] * count)
                drawn = [llama.llama_sampler_sample(each, context, i) for i, each in enumerate(samplers)]
            for each in samplers:
                llama.llama_sampler_free(each)
            begin += count
        return wanted.rows * wanted.tokens

    return timed(job, run)


def vllm(job: Job) -> Measured:
    """vLLM's CPU backend, with each row as a request with its own settings."""
    from vllm import LLM, SamplingParams

    llm = LLM(str(job.directory("hf")), dtype=job.dtype, max_num_seqs=job.batch or 256, max_model_len=1024)
    prompt = {"prompt_token_ids": prompt_of(job)}

    def completions(wanted: Job) -> list[list[int]]:
        params = [
            SamplingParams(temperature=t, top_k=k or 0, seed=1000 * seed + i, max_tokens=wanted.tokens, ignore_eos=True)
            for i, (t, k, seed) in enumerate(wanted.settings())
        ]
        return [list(output.outputs[0].token_ids) for output in llm.generate([prompt] * wanted.rows, params, use_tqdm=False)]

    return timed(job, lambda wanted: sum(map(len, completions(wanted))))


# -- one process -------------------------------------------------------------------------------------------------------------


def same(together: list[Any], alone: list[Any]) -> Measured:
    """Count the samples that are equal in a batch and alone."""
    return {"same": sum(list(a) == list(b) for a, b in zip(together, alone, strict=True))}


def peak_memory() -> int:
    """The peak resident memory of this process, in bytes; `resource` would include the parent's before the fork."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM")


ENGINES = {engine.__name__: engine for engine in (gptsweep, nanogpt, openvino, ctranslate2, transformers, llamacpp, vllm)}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    if job.engine in ("gptsweep", "nanogpt", "transformers"):
        import torch

        torch.set_num_threads(job.threads)
    measured = ENGINES[job.engine](job) | {"peak_memory": peak_memory()}
    print(RESULT + json.dumps(asdict(job) | measured), flush=True)


if __name__ == "__main__":
    main()
