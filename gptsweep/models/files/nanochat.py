"""Read a checkpoint of nanochat, ``model_NNNNNN.pt`` with its ``meta_NNNNNN.json``, from any version of nanochat's code.

A checkpoint records its sizes but not the version of the code that trained it. The names and shapes of the weights identify
the version, here called an era; the constants of each era are those of nanochat's code at the time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...display import get_logger
from ...errors import ModelError, brief
from ...files import read_json
from ...records import LAST_STEP, ModelSource
from ..architecture import is_size
from ..checkpoint import Checkpoint, by_name, checkpoint_of, fit
from ..layers import NormConfig, RotaryConfig
from ..nanochat import Nanochat, NanochatConfig
from .nanochat_directory import KEY, checkpoint_at, tokenizer_of
from .nanochat_tokenizer import read_tokenizer
from .pickles import mapping_of
from .places import some_of
from .torch_file import TorchFile
from .weights import StoredTensor

log = get_logger(__name__)

VOCABULARY_MULTIPLE = 64
"""The embedding has one row per token, or is padded to a multiple of this; padding rows are dropped."""

_SIZES = {"sequence_len": "block_size", "n_layer": "n_layer", "n_head": "n_head", "n_kv_head": "n_kv_heads", "n_embd": "n_embd"}
_KNOWN = re.compile(
    r"transformer\.wte\.weight|lm_head\.weight|resid_lambdas|x0_lambdas|value_embeds\.\d{1,9}\.weight|smear_gate\.weight"
    r"|smear_lambda|backout_lambda|transformer\.h\.\d{1,9}\.(attn\.(c_q|c_k|c_v|c_proj|ve_gate)|mlp\.(c_fc|c_proj))\.weight"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Era:
    """The constants of nanochat's code from the date ``since`` on that weights and sizes do not show.

    ``short`` maps ``sequence_len`` to the attention window of an S in ``window_pattern``, in earlier tokens, the token itself
    not counted.
    """

    since: str
    softcap: float = 15.0
    base: float = 10_000.0
    rounded: bool = True
    sharpness: float = 1.0
    gate_scale: float = 2.0
    short: Callable[[int], int] = lambda length: length // 2


FIRST = Era(since="2025-10-13")
MIXED = Era(since="2026-01-11")
VALUES = Era(since="2026-01-16")
SHARPER = Era(
    since="2026-03-09", base=100_000.0, rounded=False, sharpness=1.15, gate_scale=3.0,
    short=lambda length: -(-length // 384) * 128,
)  # fmt: skip
SMEARED = replace(SHARPER, since="2026-03-14", sharpness=1.2, short=lambda length: -(-length // 512) * 128)

_GATES = {32: VALUES, 12: SHARPER}
"""Eras by the number of elements that the gate of a value embedding reads."""
_SMEAR = 24
_OTHER_SOFTCAP = (
    "training between 2026-03-02 and 2026-03-09 used 20, which checkpoints do not record: for those, model.softcap=20"
)


def open_source(source: ModelSource) -> Checkpoint:
    """Open ``model=nanochat``."""
    return open_nanochat(source.out_dir, source.step, source.tokenizer, source.softcap)


def open_nanochat(
    out_dir: str, step: str = LAST_STEP, tokenizer: str | None = None, softcap: float | None = None
) -> Checkpoint:
    """Open a checkpoint as nanochat's ``save_checkpoint`` writes it.

    Args:
        out_dir: the directory that holds ``model_NNNNNN.pt``.
        step: the training step, or `LAST_STEP`.
        tokenizer: path of ``tokenizer.pkl``; None: look for it.
        softcap: soft cap on the logits; None: that of the era.

    Raises:
        ModelError: a file is missing or damaged, or was not written by nanochat's own code.
    """

    def wrong(what: str) -> ModelError:
        return ModelError(KEY, out_dir, what)

    number, path = checkpoint_at(out_dir, step)
    settings = _settings(path.with_name(f"meta_{path.stem.removeprefix('model_')}.json"), wrong)
    file = TorchFile(path, KEY, out_dir)
    stored = by_name(file.tensors(mapping_of(file.contents) or {}), str, KEY, out_dir)
    if strange := [name for name in stored if not _KNOWN.fullmatch(name)]:
        names = some_of(strange)
        raise wrong(f"{path.name} has weights that nanochat's own code never had: {names}; gptsweep does not support forks")
    era = era_of(stored, wrong)
    if settings["n_layer"] > len(stored):
        raise wrong(f"{path.name} has {len(stored)} weights, too few for its {settings['n_layer']} layers")
    config = _config(settings, era, softcap, wrong)
    named = {_own_name(name): _cut(name, weight, config.vocab_size, wrong) for name, weight in stored.items()}
    weights = Nanochat.weights_from_hf(named, settings, config, wrong)
    fitting = fit(Nanochat, config, weights, KEY, out_dir)
    vocabulary = read_tokenizer(tokenizer_of(out_dir, tokenizer), config.vocab_size)
    unsure = f"; {_OTHER_SOFTCAP}" if era is VALUES and softcap is None else ""
    log.info(
        "step %d, as nanochat's code of %s computes: soft cap %g%s; %r before each prompt",
        number, era.since, config.softcap, unsure, vocabulary.bos,
    )  # fmt: skip
    return replace(checkpoint_of(Nanochat, config, vocabulary, fitting, KEY, out_dir), step=number)


def era_of(weights: Mapping[str, StoredTensor], wrong: Callable[[str], ModelError]) -> Era:
    """Identify the era from the names and shapes of the weights.

    Raises:
        ModelError: the gates of the value embeddings fit no era.
    """
    if "smear_gate.weight" in weights:
        return SMEARED
    gates = {weight.shape[-1:] for name, weight in weights.items() if name.endswith(".ve_gate.weight")}
    if gates or any(name.startswith("value_embeds.") for name in weights):
        era = _GATES.get(next(iter(gates))[0]) if len(gates) == 1 and gates != {()} else None
        if era is None:
            read = ", ".join(sorted(str(gate[0]) for gate in gates if gate)) or "no"
            raise wrong(
                f"its value embeddings have gates that read {read} channels; nanochat's read 32, or 12 in later versions"
            )
        return era
    return MIXED if {"resid_lambdas", "x0_lambdas"} & set(weights) else FIRST


def _settings(path: Path, wrong: Callable[[str], ModelError]) -> dict[str, Any]:
    """Read and check ``model_config`` in a ``meta_NNNNNN.json``."""
    try:
        meta = read_json(path)
    except FileNotFoundError as error:
        raise wrong(f"there is no {path.name}, which holds their sizes, beside the weights; copy it, too") from error
    except (OSError, ValueError) as error:
        raise wrong(f"its {path.name} cannot be read ({error})") from error
    settings = meta.get("model_config") if isinstance(meta, dict) else None
    if not isinstance(settings, dict):
        raise wrong(f"its {path.name} has no model_config")
    for name in ("vocab_size", *_SIZES):
        if not is_size(settings.get(name)):
            raise wrong(f"its {path.name} has {name}={brief(settings.get(name))}, which is not a whole number below 2**31")
    pattern = settings.get("window_pattern", "L")
    if not isinstance(pattern, str) or not re.fullmatch(r"[SLsl]{1,1000}", pattern):
        raise wrong(f"its {path.name} has window_pattern={brief(pattern)}, which does not consist of S and L")
    if others := settings.keys() - {"vocab_size", "window_pattern", *_SIZES}:
        raise wrong(f"its {path.name} has the model setting {min(others):.80}, which nanochat's own code never had")
    return settings


def _config(settings: Mapping[str, Any], era: Era, softcap: float | None, wrong: Callable[[str], ModelError]) -> NanochatConfig:
    sizes = {ours: settings[theirs] for theirs, ours in _SIZES.items()}
    n_layer, n_embd, n_head = sizes["n_layer"], sizes["n_embd"], sizes["n_head"]
    if n_head < 1 or n_embd % n_head:
        raise wrong(f"it has n_embd={n_embd}, which is not a multiple of n_head={n_head}")
    gated = era in _GATES.values() or era is SMEARED
    try:
        return NanochatConfig(
            **sizes,
            vocab_size=settings["vocab_size"],
            head_size=n_embd // n_head,
            n_inner=4 * n_embd,
            norm=NormConfig(kind="rms", epsilon=2.0**-23, weight=False),  # float32's machine epsilon, torch's default
            rotary=RotaryConfig(size=n_embd // n_head, base=era.base, backwards=True, rounded=era.rounded),
            windows=_windows(settings.get("window_pattern"), sizes["block_size"], n_layer, era),
            activation="relu_squared",
            gated=False,
            softcap=era.softcap if softcap is None else softcap,
            sharpness=era.sharpness,
            mixed=era is not FIRST,
            value_layers=tuple(range((n_layer - 1) % 2, n_layer, 2)) if gated else (),
            gate_channels=(32 if era is VALUES else 12) if gated else 0,
            gate_scale=era.gate_scale if gated else 0.0,
            smear_channels=_SMEAR if era is SMEARED else 0,
            backout=era is SMEARED,
        )
    except ValueError as error:
        raise wrong(f"its settings are invalid ({error})") from error


def _windows(pattern: str | None, length: int, n_layer: int, era: Era) -> tuple[int | None, ...]:
    """Return the attention window of each layer, the token's own position included.

    nanochat does not count the token itself. Its long window is ``length``, not unlimited, and the last layer always has it.
    """
    if pattern is None:
        return (None,) * n_layer
    before = {"S": era.short(length), "L": length}
    return (*(1 + before[pattern.upper()[layer % len(pattern)]] for layer in range(n_layer - 1)), 1 + length)


def _own_name(name: str) -> str:
    """Rename a value embedding to a weight of its layer."""
    return re.sub(r"^value_embeds\.(\d+)\.", r"transformer.h.\1.attn.value_embed.", name)


def _cut(name: str, weight: StoredTensor, vocab_size: int, wrong: Callable[[str], ModelError]) -> StoredTensor:
    """Drop the padding rows of a weight that has one row per token; return other weights unchanged."""
    if not (name.startswith("value_embeds.") or name in ("transformer.wte.weight", "lm_head.weight")):
        return weight
    padded = -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if not weight.shape or weight.shape[0] not in (vocab_size, padded):
        raise wrong(f"the weight {name:.80} has the shape {list(weight.shape)}, but the vocabulary has {vocab_size} tokens")
    return replace(weight, shape=(vocab_size, *weight.shape[1:]))
