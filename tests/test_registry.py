"""What a developer would lose: an architecture or a file format of one's own, without a change to the package."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import peaked_gpt
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import gptsweep
from gptsweep.engine.engine import Engine
from gptsweep.errors import ModelError
from gptsweep.models.architecture import Architecture, Attend, LinearLayer
from gptsweep.models.checkpoint import Checkpoint, checkpoint_of, fit
from gptsweep.models.files.safetensors_file import read_safetensors
from gptsweep.models.files.tokenizers import CharTokenizer
from gptsweep.models.gpt2 import GPT, GPTConfig
from gptsweep.models.loading import load_model
from gptsweep.models.registry import ARCHITECTURES, FORMATS, _imported, architecture_of, open_checkpoint
from gptsweep.records import DeviceSettings, ModelSource, Row, Sampling, sources

LETTERS = "\n abcdefghij"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToyConfig:
    vocab_size: int
    n_layer: int = 2
    n_head: int = 4
    n_kv_heads: int = 2
    head_size: int = 8
    tied_head: bool = False


class Toy(Architecture):
    """Grouped heads that are rotated, no block size, no biases: what GPT-2 has not."""

    TITLE = "Toy"
    EMBEDDING = "embed.weight"
    HEAD = "head.weight"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.config: ToyConfig = config
        width = config.n_head * config.head_size
        self.embed = nn.Embedding(config.vocab_size, width)
        sizes = {"q": config.n_head, "k": config.n_kv_heads, "v": config.n_kv_heads, "out": config.n_head}
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, heads * config.head_size, bias=False) for name, heads in sizes.items()})
            for _ in range(config.n_layer)
        )
        self.head: nn.Module = nn.Linear(width, config.vocab_size, bias=False)

    block_size = property(lambda self: None)
    n_layer = property(lambda self: self.config.n_layer)
    n_head = property(lambda self: self.config.n_head)
    n_kv_heads = property(lambda self: self.config.n_kv_heads)
    head_size = property(lambda self: self.config.head_size)

    def project(self, layer: nn.ModuleDict, x: Tensor, positions: Tensor) -> list[Tensor]:
        q, k, v = (layer[name](x).unflatten(-1, (-1, self.config.head_size)) for name in ("q", "k", "v"))
        angles = positions[..., None, None] / 10 ** torch.arange(self.config.head_size // 2)
        return [*(self.rotated(heads, angles) for heads in (q, k)), v]

    @staticmethod
    def rotated(heads: Tensor, angles: Tensor) -> Tensor:
        a, b = heads.chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        for number, layer in enumerate(self.layers):
            attended = attend(number, *self.project(layer, x, positions))
            if keep is not None and number == self.config.n_layer - 1:
                x = x[keep]
            x = x + layer["out"](attended)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def forward(self, ids: Tensor) -> Tensor:
        """One row, in plain torch."""

        def attend(_layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            q, k, v = (heads.transpose(0, 1) for heads in (queries, keys, values))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(0, 1).flatten(1)

        return self.logits(self.hidden(ids, torch.arange(len(ids)), attend))

    def linear_layers(self) -> Iterator[LinearLayer]:
        for layer in self.layers:
            yield from (LinearLayer(layer, name) for name in ("q", "k", "v", "out"))
        yield LinearLayer(self, "head")

    def between_attentions(self, x: Tensor) -> tuple[Tensor, ...]:
        layer = self.layers[0]
        return *self.project(layer, x, torch.zeros(len(x), dtype=torch.int64)), layer["out"](x), self.logits(x)

    @classmethod
    def config_from_hf(cls, settings: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> ToyConfig:
        if not isinstance(settings.get("vocab_size"), int):
            raise wrong("its config.json has no vocab_size")
        return ToyConfig(vocab_size=settings["vocab_size"])

    @classmethod
    def is_own(cls, name: str) -> bool:
        return name.startswith(("embed.", "layers.", "head."))

    @classmethod
    def layer_weights(cls, config: ToyConfig) -> Iterator[str]:
        return (f"layers.{number}.q.weight" for number in range(config.n_layer))

    @classmethod
    def outline(cls, config: ToyConfig) -> dict[str, tuple[int, ...]]:
        return {cls.EMBEDDING: (config.vocab_size, config.n_head * config.head_size)}

    @classmethod
    def stays_float32(cls, name: str) -> bool:
        return False

    def compile_blocks(self, mode: str | None) -> None:
        raise NotImplementedError


def open_toy(source: ModelSource) -> Checkpoint:
    """One safetensors file whose metadata are the shape and the characters: a format of one's own."""
    path = str(source.path)
    stored, metadata = read_safetensors(Path(path), "model.path", path)
    config = GPTConfig(**json.loads(metadata["shape"]))
    fitting = fit(GPT, config, stored, "model.path", path)
    return checkpoint_of(GPT, config, CharTokenizer(list(metadata["characters"])), fitting, "model.path", path)


def save_toy(directory: Path, **left_out: Any) -> Path:
    generator = torch.Generator().manual_seed(0)
    outline = Toy.laid_out(ToyConfig(vocab_size=len(LETTERS)))
    shapes = {name: parameter.shape for name, parameter in outline.named_parameters()}
    weights = {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items() if name not in left_out}
    directory.mkdir()
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "toy", "vocab_size": len(LETTERS)}))
    vocabulary = {letter: token for token, letter in enumerate("ĊĠ" + LETTERS[2:])}  # as byte-level vocabularies write them
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "pre_tokenizer": level, "decoder": level}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


@pytest.fixture
def toy_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(ARCHITECTURES, "toy", f"{__name__}:Toy")
    return save_toy(tmp_path / "toy")


def test_every_line_of_the_registry_names_what_there_is() -> None:
    assert set(FORMATS) == set(sources.MODELS)
    assert all(callable(_imported(entry)) for entry in FORMATS.values())
    assert architecture_of("gpt2") is GPT
    assert all(issubclass(architecture_of(name), Architecture) for name in ARCHITECTURES)


def test_an_architecture_of_ones_own_generates_what_its_forward_says(toy_dir: Path) -> None:
    loaded = load_model(ModelSource(name="hf", path=str(toy_dir)), DeviceSettings(name="cpu"))
    model = loaded.model
    assert isinstance(model, Toy)
    prompts = [(2, 3, 4), (2, 3, 4), (5,), tuple(range(2, 12)) * 3]
    greedy = Sampling(num_samples=1, max_new_tokens=40, temperature=0.0)
    rows = [Row(prompt_ids=ids, sampling=greedy, noise_key=0, sample_index=i) for i, ids in enumerate(prompts)]
    engine = Engine(model, vocab_size=len(LETTERS), max_rows=3)
    made = {completion.row.sample_index: completion for completion in engine.run(rows)}
    for index, ids in enumerate(prompts):
        assert made[index].finish_reason == "length"
        seen = list(ids)
        with torch.inference_mode():
            for token in made[index].token_ids:
                logits = model(torch.tensor(seen))[-1]
                assert logits.max() - logits[token] < 1e-4
                seen.append(token)


def test_it_is_loaded_by_name_and_sampled_like_any_other(toy_dir: Path) -> None:
    lm = gptsweep.load(toy_dir, device="cpu")
    first, second = lm.generate("abc", num_samples=2, max_new_tokens=12, overflow="crop")
    assert len(first.token_ids) == len(second.token_ids) == 12
    assert first.completion != second.completion
    assert set(first.completion) <= set(LETTERS)


def test_weights_that_do_not_fit_it_are_the_same_clear_errors(toy_dir: Path, tmp_path: Path) -> None:
    damaged = save_toy(tmp_path / "damaged", **{"layers.1.k.weight": None})
    with pytest.raises(ModelError, match=r"weights are missing: layers\.1\.k\.weight"):
        open_checkpoint(ModelSource(name="hf", path=str(damaged)))
    (toy_dir / "config.json").write_text('{"model_type": "toy"}')
    with pytest.raises(ModelError, match=r"has no vocab_size"):
        open_checkpoint(ModelSource(name="hf", path=str(toy_dir)))
    (toy_dir / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(ModelError, match=r"'other'; gptsweep supports model_type 'gpt2', .* or 'toy'"):
        open_checkpoint(ModelSource(name="hf", path=str(toy_dir)))


def test_two_architectures_with_the_same_weights_are_two_models(toy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource(name="hf", path=str(toy_dir))
    first = open_checkpoint(source).fingerprint
    monkeypatch.setattr(Toy, "TITLE", "Other")
    assert open_checkpoint(source).fingerprint != first


def test_a_format_of_ones_own_opens_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "toy", f"{__name__}:open_toy")
    monkeypatch.setattr(sources, "MODELS", (*sources.MODELS, "toy"))
    model = peaked_gpt(GPTConfig(block_size=16, vocab_size=len(LETTERS), n_layer=1, n_head=2, n_embd=16))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(
        weights, tmp_path / "toy", metadata={"shape": json.dumps(dataclasses.asdict(model.config)), "characters": LETTERS}
    )
    loaded = load_model(ModelSource(name="toy", path=str(tmp_path / "toy")), DeviceSettings(name="cpu"))
    ids = torch.tensor([loaded.tokenizer.encode("abc\n")])
    assert torch.allclose(loaded.model(ids), model(ids), atol=1e-4)
