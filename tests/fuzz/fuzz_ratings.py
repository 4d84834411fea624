"""Ratings, and log-probabilities of tokens: ``python tests/fuzz/fuzz_ratings.py --seconds 600``.

The input is files, see `lay_out`. Each line of log-probabilities gets a valid checksum, as an attacker would write it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from driver import END, MEMORY, check_message, instrumented, lay_out, run

with instrumented():
    from gptsweep.analysis.frames import read_sweep
    from gptsweep.analysis.sweep import Sweep
    from gptsweep.analysis.tokens import logprobs_of
    from gptsweep.errors import GptsweepError
    from gptsweep.store.durable import seal
    from gptsweep.store.ratings import read_ratings, save_ratings
from made_sweep import made_samples, write_point

SWEEP = Path(tempfile.mkdtemp(dir=MEMORY)) / "sweep"
POINTS = [SWEEP / f"temperature={temperature}" for temperature in (0.5, 1.0)]
RATINGS, LOGPROBS, SCORES = SWEEP / "rated.jsonl", POINTS[0] / "logprobs.jsonl", POINTS[0] / "scores.json"
FILES = [RATINGS, LOGPROBS, SCORES]


def length(sample: dict[str, object]) -> int:
    return len(str(sample["completion"]))


def target(data: bytes) -> None:
    lay_out(data, FILES)
    if LOGPROBS.exists():
        LOGPROBS.write_bytes(b"\n".join(line + seal(line).rstrip(b"\n") for line in LOGPROBS.read_bytes().split(b"\n")))
    sweep = the_sweep()
    try:
        assert len(sweep.scored(length).summary) == len(POINTS)
        for tokens in logprobs_of(sweep.samples, dict(enumerate(POINTS))):
            assert tokens
        if RATINGS.exists():
            ratings = read_ratings(RATINGS)
            sweep.rated(ratings).group(["temperature"])
            save_ratings(SWEEP, ratings)
            assert list(map(repr, read_ratings(SWEEP / "ratings.jsonl"))) == list(map(repr, ratings))
    except GptsweepError as error:
        check_message(error)


@cache
def the_sweep() -> Sweep:
    return read_sweep(SWEEP)


def seeds() -> list[bytes]:
    logging.disable()
    os.fsync = lambda fd: None  # durability is not tested here, and syncs are slow
    shutil.rmtree(SWEEP, ignore_errors=True)
    names = []
    for point, temperature in zip(POINTS, (0.5, 1.0), strict=True):
        samples = made_samples(temperature=temperature, top_k=3, seed=1, num_samples=2, words=3)
        names += [sample.as_json()["sample_id"] for sample in samples]
        write_point(point, samples, sampling={"temperature": temperature})
    first = read_sweep(POINTS[0]).samples.iloc[0]
    ids = first["token_ids"].tolist()
    line = {
        "schema_version": 1, "point_id": names[0].rsplit("-", 2)[0], "prompt_index": 0, "sample_index": 0, "alternatives": 1,
        "token_ids": ids, "ends": list(range(1, len(ids) + 1)),
        **{name: [-0.5] * len(ids) for name in ("logprob", "sampler_logprob", "entropy")},
        **{name: [1] * len(ids) for name in ("rank", "survivors")},
        "top_ids": [[token] for token in ids], "top_logprobs": [[-0.5]] * len(ids),
        "texts": {str(token): "x" for token in ids},
    }  # fmt: skip
    ratings = [
        {"left": names[0], "right": names[2], "verdict": "left", "rater": "a", "seconds": 1.5},
        {"left": names[3], "right": names[1], "verdict": "tie"},
        {"left": names[0], "right": names[2], "verdict": "both_bad", "rater": "b"},
        {"left": names[1], "right": names[2], "verdict": "skip", "seconds": 0},
    ]
    rated = "".join(json.dumps(rating) + "\n" for rating in ratings).encode()
    measured = json.dumps(line, separators=(",", ":")).encode()[:-1]
    return [END.join([rated, b"", b""]), END.join([b"", measured, b""]), END.join([b"", b"", b'{"a:b": {"values": [1]}}'])]


if __name__ == "__main__":
    run(target, seeds())
