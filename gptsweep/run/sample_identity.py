"""What determines the tokens of a sample: its settings without inactive ones, and the key of its noise."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ..records import Sampling, active_steps, samplers_of, steps_of


@lru_cache
def canonical_settings(sampling: Sampling) -> Sampling:
    """The settings without those that do not affect a sample's tokens. Rows share the result, since there may be millions."""
    active, kind = active_steps(sampling), type(sampling)
    idle = [name for step, names in steps_of(kind).items() if step not in active for name in names if name != "temperature"]
    settings: dict[str, Any] = {name: samplers_of(kind)[name].neutral for name in idle}
    if sampling.temperature == 0 or sampling.rng == "counter":
        settings["num_samples"] = 1  # not for a stream, from which all samples of a point draw in turn
    return replace(sampling, noise="common", **settings)


def independent_key(seed: int, point: str) -> int:
    """The noise key for ``noise=independent``: 64 bits of a hash of the seed and the point's id."""
    return int.from_bytes(hashlib.sha256(f"{seed} {point}".encode()).digest()[:8], "little")
