"""The model in the package, and the script that makes it."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

import gptsweep
from gptsweep.engine.engine import Engine
from gptsweep.models.checkpoint import load_weights
from gptsweep.models.files.embedded import open_embedded
from gptsweep.records import Row, Sampling

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ROOT / "gptsweep" / "data" / "shakespeare"
TEXT = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
needs_text = pytest.mark.skipif(not TEXT.exists(), reason="tinyshakespeare.txt is not beside the repository")


def read(directory: Path) -> tuple[nn.Module, dict[str, object], list[str]]:
    """transformers' model of ``directory`` in float32, its training facts and its vocabulary."""
    with safe_open(directory / "model.safetensors", "pt") as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    model = Qwen3ForCausalLM(Qwen3Config(**json.loads(metadata["config"])))
    model.load_state_dict(weights)
    return model.eval(), json.loads(metadata["training"]), json.loads((directory / "vocab.json").read_text())


@torch.inference_mode()
def loss_over(model: nn.Module, ids: Tensor, length: int, every: int = 1) -> float:
    """Mean loss in nats a character over every ``every``-th window of ``length``, of which the first half is not scored."""
    half, losses = length // 2, []
    for begin in range(0, len(ids) - length, half * every):
        logits = model(ids[None, begin : begin + length]).logits[0, half:]
        losses.append(F.cross_entropy(logits, ids[begin + half + 1 : begin + length + 1]))
    return torch.stack(losses).mean().item()


def test_the_package_stays_small() -> None:
    assert sum(path.stat().st_size for path in CARRIED.iterdir()) <= 4_000_000


def test_the_carried_model_is_what_its_log_says() -> None:
    model, training, vocabulary = read(CARRIED)
    assert model.config.vocab_size == len(vocabulary) == 65
    assert vocabulary == sorted(set(vocabulary))
    assert "\n" in vocabulary
    assert training["validation_loss"] <= 1.42
    assert f"validation loss {training['validation_loss']:.4f}" in (CARRIED / "train.log").read_text().splitlines()[-1]


def test_a_character_costs_the_same_however_long_the_text() -> None:
    config = read(CARRIED)[0].config
    assert config.layer_types == ["sliding_attention"] * config.num_hidden_layers
    assert config.sliding_window * config.num_hidden_layers <= config.max_position_embeddings  # so it goes on as it began


@torch.inference_mode()
def test_the_fast_way_to_its_text_and_the_plain_one_give_the_same() -> None:
    lm, model = gptsweep.load("shakespeare", device="cpu", dtype="float32"), read(CARRIED)[0]
    ids = torch.tensor([lm.tokenizer.encode("ROMEO:\nWhat light through yonder window breaks?" * 5)])
    torch.testing.assert_close(lm.model(ids), model(ids).logits, rtol=0, atol=1e-4)
    settings = [{"temperature": 0.0}, {"top_k": 20}, {"temperature": 1.2, "top_k": None}, {"top_k": None, "top_p": 0.9}]
    prompts = [tuple(ids[0, :length].tolist()) for length in (6, 130)]
    rows = [
        Row(prompt_ids=prompt, sampling=Sampling(max_new_tokens=60, **some), sample_index=i, noise_key=3)
        for some in settings
        for i, prompt in enumerate(prompts)
    ]
    checkpoint = open_embedded(CARRIED)
    plain = checkpoint.architecture(checkpoint.config).eval()
    load_weights(checkpoint, plain, torch.float32)
    engines = lm.engine, Engine(plain, vocab_size=65, use_kernels=False)
    fast, slow = ({c.row: c.token_ids for c in engine.run(rows)} for engine in engines)
    assert fast == slow


@needs_text
def test_the_carried_model_predicts_text_it_never_saw() -> None:
    model, training, vocabulary = read(CARRIED)
    text = TEXT.read_text()
    assert sorted(set(text)) == vocabulary
    held_out = torch.tensor([vocabulary.index(character) for character in text[int(0.9 * len(text)) :]])
    assert loss_over(model, held_out, 512, every=4) == pytest.approx(training["validation_loss"], abs=0.03)


Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Train]:
    """Run the script for six steps on a made-up text: ``train("directory", "--steps", "9")``."""
    threads = torch.get_num_threads()
    spec = importlib.util.spec_from_file_location("train_shakespeare", ROOT / "scripts" / "train_shakespeare.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    draw = random.Random(1)
    text = tmp_path / "text.txt"
    text.write_text("".join(draw.choice(["no ", "more ", "words,\n", "alas! "]) for _ in range(200)))
    shape = {"--n-layer": 1, "--n-head": 2, "--n-embd": 8, "--n-inner": 12, "--window": 4, "--block-size": 16}
    length = {"--batch-size": 3, "--steps": 6, "--warm-up": 2, "--evaluate-every": 2}
    tiny = [str(word) for option in (shape | length).items() for word in option]

    def run(name: str, *options: str) -> Path:
        out = tmp_path / name
        script.main(["--text", str(text), "--out", str(out), "--state", str(out / "state.pt"), *tiny, *options])
        return out

    yield run
    torch.set_num_threads(threads)
    del sys.modules[spec.name]


def stored(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_the_script_writes_a_model_that_its_own_log_describes(train: Train) -> None:
    out = train("out")
    model, training, vocabulary = read(out)
    assert vocabulary == sorted(set("no more words,\nalas! "))
    sizes = model.config.hidden_size, model.config.intermediate_size, model.config.sliding_window
    assert sizes == (8, 12, 4)
    log = (out / "train.log").read_text().splitlines()
    assert [line.split()[1] for line in log if line.startswith("step ")] == ["2", "4", "6"]
    assert log[-1].startswith(f"done: validation loss {training['validation_loss']:.4f} ")


def test_the_reported_loss_is_that_of_the_file_over_the_whole_last_tenth(train: Train, tmp_path: Path) -> None:
    model, training, vocabulary = read(train("out"))
    text = (tmp_path / "text.txt").read_text()
    ids = torch.tensor([vocabulary.index(character) for character in text[int(0.9 * len(text)) :]])
    total = 0.0
    for place in range(len(ids) - 1):  # the character after it is predicted from its window, of which 8 are known at least
        begin = max(0, place // 8 * 8 - 8)
        with torch.inference_mode():
            logits = model(ids[None, begin : place + 1]).logits[0, -1]
        total -= logits.log_softmax(-1)[ids[place + 1]].item()
    assert training["validation_loss"] == pytest.approx(total / (len(ids) - 1), abs=1e-5)


def test_two_runs_give_the_same_bytes(train: Train) -> None:
    assert stored(train("first")) == stored(train("second"))
    assert stored(train("first")) != stored(train("third", "--seed", "2"))


def test_a_killed_run_resumes_to_the_same_bytes(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("whole")
    advance = sys.modules["train_shakespeare"].Training.advance

    def killed(training: object) -> torch.Tensor:
        if training.step == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return advance(training)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["train_shakespeare"].Training, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            train("killed", "--save-seconds", "0")
    assert stored(train("killed", "--resume")) == stored(whole)


def test_a_run_is_not_resumed_with_another_recipe(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train("out")
    with pytest.raises(SystemExit):
        train("out", "--resume", "--seed", "2")
    assert "belongs to another text or recipe" in capsys.readouterr().err


def test_steps_cannot_change_once_the_rate_falls(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train("out")
    with pytest.raises(SystemExit):
        train("out", "--resume", "--steps", "9")
    assert "--steps must stay 6" in capsys.readouterr().err
