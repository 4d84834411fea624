"""Synthetic sweep directories, as the launcher writes them but without a model, to test everything that reads them."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptsweep.analysis.frames import read_sweep
from gptsweep.analysis.reference import Reference, saved_reference
from gptsweep.analysis.summary import summary_of
from gptsweep.analysis.sweep import Sweep
from gptsweep.records import Sample, Sampling
from gptsweep.report import report

VOCABULARY = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "was",
    "his",
    "he",
    "it",
    "with",
    "as",
    "for",
    "had",
    "you",
    "not",
    "be",
    "is",
    "at",
    "on",
    "by",
    "her",
    "him",
    "she",
    "this",
    "have",
    "they",
    "from",
    "one",
    "all",
    "when",
    "there",
    "were",
    "which",
    "would",
    "been",
    "their",
    "my",
    "me",
    "so",
    "no",
    "said",
    "what",
    "up",
    "out",
    "who",
    "them",
    "but",
    "we",
    "are",
    "an",
    "or",
    "if",
    "will",
    "more",
    "little",
    "good",
    "great",
    "king",
    "lord",
    "love",
    "night",
    "day",
    "sword",
    "crown",
    "heart",
    "death",
    "heaven",
    "blood",
    "noble",
    "gentle",
    "sweet",
    "fair",
    "never",
    "ever",
    "speak",
]


def made_completion(rng: random.Random, temperature: float, top_k: int | None, words: int) -> list[int]:
    """Generate word numbers: a loop at temperature 0, more random at higher ones; ``top_k`` limits the choice."""
    choice = min(top_k or len(VOCABULARY), len(VOCABULARY))
    found = [rng.randrange(min(8, choice))]
    while len(found) < words:
        if rng.random() < 0.35 + 0.4 * temperature:
            found.append(min(int(rng.expovariate(1 / (2 + 12 * temperature))), choice - 1))
        else:
            found.append(found[-3] if len(found) > 2 else found[-1])
    return found


def made_samples(
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
    num_samples: int = 10,
    words: int = 40,
    prompts: Sequence[str] = ("\n",),
    model: str = "shakespeare",
    text: str | None = None,
) -> list[Sample]:
    """The samples of a point; the same (prompt, seed, sample_index) shares its random numbers between points."""
    point = hashlib.sha256(repr((model, temperature, top_k, seed, words, list(prompts))).encode()).hexdigest()[:16]
    samples = []
    for (prompt_index, prompt), sample_index in itertools.product(enumerate(prompts), range(num_samples)):
        rng = random.Random(f"{seed}/{prompt_index}/{sample_index}")
        noise = random.Random(f"{seed}/{prompt_index}/{sample_index}/noise").random()
        ids = made_completion(rng, temperature, top_k, words)
        logprob = -0.2 - 1.6 * temperature - 0.2 * noise - 0.02 * rng.random() - (0.2 if top_k is None else 0.002 * top_k)
        samples.append(
            Sample(
                point_id=point,
                prompt_id=str(prompt_index),
                prompt_index=prompt_index,
                sample_index=sample_index,
                seed=seed,
                sampling=Sampling(temperature=temperature, top_k=top_k, max_new_tokens=words),
                model=model,
                prompt=prompt,
                completion=text if text is not None else " ".join(VOCABULARY[each] for each in ids),
                finish_reason="length",
                prompt_tokens=max(1, len(prompt.split())),
                token_ids=tuple(ids),
                logprob_mean=logprob,
                sampler_logprob_mean=logprob * 0.6,
                entropy_mean=-logprob * 1.1,
            )
        )
    return samples


def write_point(directory: Path, samples: Sequence[Sample], **settings: Any) -> None:
    """Write a complete point."""
    directory.mkdir(parents=True)
    data = "".join(sample.line() for sample in samples).encode()
    (directory / "samples.jsonl").write_bytes(data)
    first = samples[0]
    about = {"model": first.model, "start": first.prompt, "seed": first.seed, **first.sampling.as_json(), **settings}
    row = {key: json.dumps(value) if isinstance(value, (list, dict)) else value for key, value in about.items()}
    row |= summary_of([sample.as_json() for sample in samples])
    with (directory / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    manifest = {
        "status": "complete",
        "point_id": first.point_id,
        "sha256": hashlib.sha256(data).hexdigest(),
        "lines": len(samples),
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))


def write_sweep(
    root: Path,
    *,
    temperature: Sequence[float] = (0.0, 0.5, 1.0),
    top_k: Sequence[int | None] = (5, 50, None),
    seed: Sequence[int] = (1, 2),
    **more: Any,
) -> Path:
    """Write a complete sweep."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "multirun.yaml").write_text("hydra: {}\n")
    for t, k, s in itertools.product(temperature, top_k, seed):
        name = f"sampling.temperature={t},sampling.top_k={'null' if k is None else k},seed={s}"
        write_point(root / name, made_samples(temperature=t, top_k=k, seed=s, **more))
    return root


def write_report(
    directory: Path, sweep: Sweep | None = None, reference: Reference | None = None, samplers: Sequence[str] = ()
) -> Path:
    """Write ``report.html`` as the review does, with comparisons of samplers by these metrics."""
    sweep = sweep or read_sweep(directory)
    path = directory / "report.html"
    comparisons = [sweep.compare_samplers(metric) for metric in samplers]
    path.write_bytes(report(sweep, directory.resolve().name, reference or saved_reference(directory, sweep), comparisons))
    return path
