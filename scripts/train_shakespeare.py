"""Train the character-level model that ships with gptsweep (``model=shakespeare``).

    OMP_NUM_THREADS=1 python scripts/train_shakespeare.py --text tinyshakespeare.txt

The text is nanoGPT's ``shakespeare_char``: the first nine tenths are trained on, the last tenth is held out. The matrices
inside the blocks are trained with Muon (Jordan et al., 2024), embeddings and norms with AdamW, in float32 on the CPU. The
architecture is Qwen3's, with a window in every layer, so a sample can grow without limit at a constant cost per token. The
output directory gets

    model.safetensors    float16 weights under transformers' names; metadata: ``config`` (as in a ``config.json`` of Qwen3) and
                         ``training``, both JSON
    vocab.json           the characters, in the order of their ids
    train.log            the machine, and one line per evaluation

and is always loadable: each evaluation that improves on all earlier ones replaces ``model.safetensors``. The validation loss is
that of the file (float16 weights) over the whole last tenth, in nats per character, each read after at least half a training
window. ``in windows of 256`` is the loss without any text before each window, as it was measured for version 0.1.

Every random number of a step is drawn from (seed, step), so a run that is killed and resumed writes the same bytes as one that
was not, and so do two runs on machines of one kind with the same build of torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # import gptsweep from this checkout, not the installed one

from gptsweep.models.decoder import Block, Decoder, DecoderConfig  # noqa: E402
from gptsweep.models.layers import NormConfig, RotaryConfig  # noqa: E402
from gptsweep.models.llama import Llama  # noqa: E402
from gptsweep.models.qwen import Qwen3  # noqa: E402


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything besides the text that determines the weights. Learning rates are peaks; see `rate`."""

    n_layer: int = 4
    n_head: int = 6
    n_embd: int = 192
    n_inner: int = 512
    window: int = 128
    block_size: int = 512
    steps: int = 4000
    batch_size: int = 6
    muon_rate: float = 0.03
    adam_rate: float = 0.01
    weight_decay: float = 0.1
    dropout: float = 0.1
    warm_up: int = 20
    decay: float = 0.6
    seed: int = 1337

    def rate(self, step: int) -> float:
        """The fraction of the peak rate: a linear warm-up, a plateau, then linear to 0 over the last ``decay`` of the steps."""
        return min(1.0, (step + 1) / self.warm_up, (self.steps - step) / (self.decay * self.steps))

    def settings(self, vocab_size: int) -> dict[str, object]:
        """The model's shape in the form of Qwen3's ``config.json``."""
        return {
            "model_type": "qwen3",
            "vocab_size": vocab_size,
            "hidden_size": self.n_embd,
            "intermediate_size": self.n_inner,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head,
            "head_dim": self.n_embd // self.n_head,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "max_position_embeddings": self.block_size,
            "use_sliding_window": True,
            "sliding_window": self.window,
            "layer_types": ["sliding_attention"] * self.n_layer,
            "attention_bias": False,
            "tie_word_embeddings": False,
        }

    def shape(self, vocab_size: int) -> DecoderConfig:
        """The model's shape as a `DecoderConfig`."""
        return DecoderConfig(
            vocab_size=vocab_size,
            block_size=self.block_size,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_kv_heads=self.n_head,
            head_size=self.n_embd // self.n_head,
            n_embd=self.n_embd,
            n_inner=self.n_inner,
            norm=NormConfig(kind="rms", epsilon=1e-6),
            qk_norm="head",
            rotary=RotaryConfig(size=self.n_embd // self.n_head),
            windows=(self.window,) * self.n_layer,
        )

    @property
    def flat_until(self) -> int:
        """The last step that does not depend on ``steps``."""
        return math.floor(self.steps * (1 - self.decay))


class Corpus:
    """The token ids of the text, as nanoGPT's ``shakespeare_char`` prepares them."""

    def __init__(self, text: str) -> None:
        self.vocabulary = sorted(set(text))
        place = {character: i for i, character in enumerate(self.vocabulary)}
        ids = torch.tensor([place[character] for character in text])
        cut = int(len(ids) * 0.9)
        self.train, self.held_out = ids[:cut], ids[cut:]
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()

    def batch(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Windows at random places of the training part: inputs and next characters, ``int64 [rows, length]``."""
        starts = torch.randint(len(self.train) - length, (rows, 1))
        windows = self.train[starts + torch.arange(length + 1)]
        return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def validation_loss(model: Decoder, ids: Tensor, length: int, known: int) -> float:
    """Mean loss in nats over every character of ``ids [n]`` but the first, read in windows of ``length``.

    Each window begins ``known`` characters early, which are read and not scored; the first has none before it.
    """
    total = 0.0
    for begin in range(0, len(ids) - 1, length - known):
        first = max(0, begin - known)
        end = min(len(ids) - 1, begin + length - known)
        logits = model(ids[None, first:end])[0, begin - first :]
        total += F.cross_entropy(logits, ids[begin + 1 : end + 1], reduction="sum").item()
    return total / (len(ids) - 1)


def add_dropout(model: Decoder, p: float) -> None:
    """Add dropout as in nanoGPT (after the embedding and both residual branches, not inside attention), by forward hooks."""

    def drop(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return F.dropout(output, p, module.training)

    model.embed.register_forward_hook(drop)
    for block in cast(list[Block], list(model.blocks)):
        block.attn.out.register_forward_hook(drop)
        block.mlp.down.register_forward_hook(drop)


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon`, but orthogonalising in float32, because bfloat16, which torch uses, is slow on most CPUs.

    Args:
        matrices: parameters of two dimensions.
        lr: the learning rate.
        weight_decay: the share of a parameter that a step of rate 1 removes.
        momentum: Nesterov momentum of the gradient.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        for group in self.param_groups:
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(mean, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * math.sqrt(max(1, len(matrix) / matrix.shape[1])))


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximate the orthogonal matrix nearest to ``matrix [n, m]``, by five Newton-Schulz steps (Jordan et al., 2024)."""
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.T if len(matrix) > matrix.shape[1] else wide


def optimisers(model: Decoder, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; ``initial_rate`` in each group is the peak."""
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    found: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimiser in found:
        for group in optimiser.param_groups:
            group["initial_rate"] = group["lr"]
    return found


def float16_weights(model: Decoder) -> dict[str, Tensor]:
    """The parameters as they are stored: float16, under transformers' names."""
    found = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().half()
        layer = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
        if layer is None:
            (stored,) = (theirs for theirs, ours in Qwen3.OUTSIDE.items() if ours == name)
            found[stored if name == Qwen3.HEAD else f"model.{stored}"] = weight
            continue
        for theirs, place in Qwen3.INSIDE.items():
            if place.parameter == layer[2]:
                found[f"model.layers.{layer[1]}.{theirs}.weight"] = weight.chunk(place.of)[place.part].contiguous()
    return found


def as_stored(model: Decoder) -> Decoder:
    """A model without hooks, in float32, with the weights rounded as they are stored."""
    stored = Llama(model.config)
    stored.load_state_dict({name: weight.half().float() for name, weight in model.state_dict().items()})
    return stored.eval()


def replace(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` always holds either all old bytes or all new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def ordered(data: bytes) -> bytes:
    """Sort the keys in the header of a safetensors file, because the library writes metadata in a varying order."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def machine() -> str:
    """The processor's name on Linux, its architecture elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()


class Training:
    """The state of a run: the model, its optimisers, and the number of steps done."""

    def __init__(self, corpus: Corpus, recipe: Recipe, out: Path, state_file: Path) -> None:
        self.corpus, self.recipe, self.out, self.state_file = corpus, recipe, out, state_file
        self.model = Llama(recipe.shape(len(corpus.vocabulary))).initialise(torch.Generator().manual_seed(recipe.seed))
        add_dropout(self.model, recipe.dropout)
        self.optimisers = optimisers(self.model, recipe)
        self.step = 0
        self.seconds = 0.0
        self.best = math.inf

    @property
    def characters(self) -> int:
        """The number of characters trained on so far, repetitions included."""
        return self.step * self.recipe.batch_size * self.recipe.block_size

    def save(self) -> None:
        """Save the state for `resume`."""
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "text": self.corpus.sha256,
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "progress": {"step": self.step, "seconds": self.seconds, "best": self.best},
        }
        data = io.BytesIO()
        torch.save(state, data)
        replace(self.state_file, data.getvalue())

    def resume(self) -> None:
        """Load the saved state.

        Raises:
            ValueError: it belongs to another run.
        """
        state = torch.load(self.state_file, weights_only=True)
        before = Recipe(**state["recipe"])
        same = dataclasses.replace(before, steps=self.recipe.steps) == self.recipe and state["text"] == self.corpus.sha256
        if not same:
            raise ValueError(f"{self.state_file} belongs to another text or recipe: {before}")
        self.step, self.seconds, self.best = (state["progress"][key] for key in ("step", "seconds", "best"))
        if before.steps != self.recipe.steps and self.step > min(before.flat_until, self.recipe.flat_until):
            raise ValueError(f"the rate is falling already at step {self.step}: --steps must stay {before.steps}")
        self.model.load_state_dict(state["model"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)

    def advance(self) -> Tensor:
        """Do one step, and return its loss."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        inputs, targets = self.corpus.batch(self.recipe.batch_size, self.recipe.block_size)
        loss = F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        rate = self.recipe.rate(self.step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_rate"] * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    def export(self, weights: dict[str, Tensor], loss: float) -> None:
        """Write the files of the package. They contain no time, so the same run gives the same bytes."""
        facts = dataclasses.asdict(self.recipe) | {
            "step": self.step,
            "characters": self.characters,
            "validation_loss": round(loss, 5),
            "text_sha256": self.corpus.sha256,
            "torch": torch.__version__,
        }
        metadata = {"config": json.dumps(self.recipe.settings(len(self.corpus.vocabulary))), "training": json.dumps(facts)}
        replace(self.out / "model.safetensors", ordered(save(weights, metadata)))
        replace(self.out / "vocab.json", (json.dumps(self.corpus.vocabulary) + "\n").encode())

    def log(self, line: str) -> None:
        print(line, flush=True)
        with (self.out / "train.log").open("a") as file:
            file.write(line + "\n")

    def run(self, evaluate_every: int, save_seconds: float) -> None:
        """Train to the last step."""
        self.model.train()
        saved = time.monotonic()
        started = saved - self.seconds
        losses: list[Tensor] = []
        while self.step < self.recipe.steps:
            losses.append(self.advance())
            self.seconds = time.monotonic() - started
            last = self.step == self.recipe.steps
            if last or self.step % evaluate_every == 0:
                stored, length = as_stored(self.model), self.recipe.block_size
                loss = validation_loss(stored, self.corpus.held_out, length, length // 2)
                if loss < self.best:
                    self.best = loss
                    self.export(float16_weights(self.model), loss)
                train_loss = torch.stack(losses).mean().item()
                losses.clear()
                whole = validation_loss(stored, self.corpus.held_out, 256, 0)
                self.log(
                    f"step {self.step:5d}  characters {self.characters:9d}  train loss (with dropout) {train_loss:.4f}"
                    f"  validation loss {loss:.4f}  in windows of 256 {whole:.4f}"
                    f"  seconds {self.seconds:.0f}"
                )
            if last or time.monotonic() - saved > save_seconds:
                self.save()
                saved = time.monotonic()
        self.log(
            f"done: validation loss {self.best:.4f} over {len(self.corpus.held_out)} characters, {self.seconds:.0f} seconds"
        )


def arguments(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace, Recipe]:
    """The command line: paths, and one option per field of `Recipe`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="the text to learn, UTF-8")
    parser.add_argument("--out", type=Path, default=ROOT / "gptsweep/data/shakespeare", help="directory for the model")
    parser.add_argument("--state", type=Path, default=ROOT / "outputs/train_shakespeare.pt", help="file for --resume")
    parser.add_argument("--resume", action="store_true", help="go on from --state; --steps may change while the rate is flat")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; another number gives other last bits")
    parser.add_argument("--evaluate-every", type=int, default=500, metavar="STEPS")
    parser.add_argument("--save-seconds", type=float, default=180, help="time between two savings of the state")
    recipe = parser.add_argument_group("recipe")
    for field in dataclasses.fields(Recipe):
        kind = type(field.default)
        recipe.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help="default %(default)s")
    found = parser.parse_args(argv)
    chosen = Recipe(**{field.name: getattr(found, field.name) for field in dataclasses.fields(Recipe)})
    return parser, found, chosen


def main(argv: Sequence[str] | None = None) -> None:
    parser, found, recipe = arguments(argv)
    torch.set_num_threads(found.threads)
    try:
        corpus = Corpus(found.text.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--text {found.text}: {error}")
    if len(corpus.train) <= recipe.block_size or len(corpus.held_out) < 2:
        parser.error(f"--text {found.text}: too short to train on windows of {recipe.block_size} characters")
    training = Training(corpus, recipe, found.out, found.state)
    found.out.mkdir(parents=True, exist_ok=True)
    if found.resume:
        try:
            training.resume()
        except (OSError, ValueError) as error:
            parser.error(f"--resume: {error}")
        training.log(f"resumed at step {training.step}, for {recipe.steps} steps")
    else:
        (found.out / "train.log").unlink(missing_ok=True)
        parameters = sum(p.numel() for p in training.model.parameters())
        training.log(f"{machine()}, {found.threads} thread(s), Python {platform.python_version()}, torch {torch.__version__}")
        training.log(f"{parameters} parameters, {training.model.config}")
        training.log(f"{recipe}, text sha256 {corpus.sha256}")
    training.run(found.evaluate_every, found.save_seconds)


if __name__ == "__main__":
    main()
