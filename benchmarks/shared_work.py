"""How much of a sweep is computed only once: the share of its samples' tokens that the model reads.

    python benchmarks/shared_work.py [--samples 4] [--tokens 100]

The sweeps are over temperature, top_k and seed, with the embedded model. Rows are one sequence while their ids are equal: with
common noise, points that differ in top_k or a little in temperature sample the same tokens for a while. These are counts, so
the machine's speed does not matter. ``decoded`` is the share of all tokens that went through the model, prompts included.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import gptsweep
from gptsweep.api import sampling_of
from gptsweep.engine.torch_backend import TorchBackends
from gptsweep.records import Point, Prompt
from gptsweep.run.executors.local import LocalExecutor
from gptsweep.run.rows import Plan, Task, encoded

SWEEPS: dict[str, dict[str, list[Any]]] = {
    "3 top_k": {"top_k": [20, 50, None]},
    "5 temperatures, 0.7 to 0.9": {"temperature": [0.7, 0.75, 0.8, 0.85, 0.9]},
    "5 temperatures, 0.2 to 1.8": {"temperature": [0.2, 0.6, 1.0, 1.4, 1.8]},
    "3 temperatures x 3 top_k x 2 seeds": {"temperature": [0.7, 0.8, 0.9], "top_k": [20, 50, None], "seed": [1, 2]},
    "greedy, 3 top_k x 3 seeds": {"temperature": [0], "top_k": [1, 50, None], "seed": [1, 2, 3]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=100)
    arguments = parser.parse_args()
    lm = gptsweep.load("shakespeare")
    read = 0
    hidden = lm.model.hidden

    def counted(ids: Any, *rest: Any) -> Any:
        nonlocal read
        read += ids.numel()
        return hidden(ids, *rest)

    object.__setattr__(lm.model, "hidden", counted)
    prompts = encoded(lm, (Prompt("0", "ROMEO:\n"),))
    print(f"{'sweep':36} {'noise':12} {'tokens':>8} {'decoded':>8}")
    for name, axes in SWEEPS.items():
        for noise in ("common", "independent"):
            tasks = []
            for values in product(*axes.values()):
                settings = dict(zip(axes, values, strict=True))
                seed = settings.pop("seed", 1)
                sizes = {"num_samples": arguments.samples, "max_new_tokens": arguments.tokens, "noise": noise}
                point = Point(model=lm.source, device=lm.device, sampling=sampling_of(**sizes, **settings), seed=seed)
                tasks.append(Task.of(lm, point, prompts))
            read = 0
            samples = LocalExecutor(TorchBackends()).run(lm, Plan.of(lm, tasks))
            tokens = sum(len(sample.token_ids) + sample.prompt_tokens for _, sample in samples)
            print(f"{name:36} {noise:12} {tokens:8,} {read / tokens:8.1%}", flush=True)


if __name__ == "__main__":
    main()
