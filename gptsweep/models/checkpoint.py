"""Find a model, say what it is, and fill a `GPT` with its weights.

Every source ends in the same form: a shape, a tokenizer, and for each parameter of `GPT` the place of its bytes in a file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from torch import nn

from ..display import get_logger
from ..errors import ModelError, brief
from ..files import JSON_BYTES, read_json
from ..records import GPT2_META, NANOGPT_FILE, ModelSource
from .files.meta import read_meta
from .files.pickles import Inert, mapping_of
from .files.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer, read_hf_tokenizer
from .files.weights import StoredTensor, TorchFile, View, read_safetensors
from .gpt2 import GPT, Activation, GPTConfig

log = get_logger(__name__)

EMBEDDED = Path(__file__).parents[1] / "data" / "shakespeare"
HUB_OWNER = "openai-community"
GPT2_VOCAB = 50257
GPT2_PADDED_VOCAB = 50304
"""GPT-2's 50,257 tokens rounded up to a multiple of 64, as nanoGPT pads its embedding."""

PADDING = 128
"""A checkpoint's vocabulary that is larger than its tokenizer's by this or more is not padded, but another one."""

PROBE_SECONDS = 2.0
"""How long to try for a first connection to the hub."""

_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"
_GREATEST_SIZE = 2**31 - 1
_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model on disk.

    ``fingerprint`` is a SHA-256 over the shape and the stored weights: equal wherever the files lie, and whatever else they
    hold. ``weights`` says for each parameter of ``GPT(config)`` where it is stored; a tied head is not among them.
    """

    config: GPTConfig
    tokenizer: Tokenizer
    fingerprint: str
    weights: Mapping[str, StoredTensor]


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Find the model, fetching it where need be, and read all but its weights, which are only hashed.

    Raises:
        ModelError: there is no such model, it cannot be fetched or read, or it is not a GPT-2 that this package can run.
    """
    if source.name == "shakespeare":
        return open_embedded(EMBEDDED)
    if source.name == "resume":
        return open_nanogpt(source.out_dir, source.meta, source.file)
    if source.name == "hf":
        return open_hf(_files_at(source.path or ""))
    return open_hf(HubFiles(_cached_name(source.name), "model", source.name), GPT2Tokenizer())


def load_weights(checkpoint: Checkpoint, model: GPT, dtype: torch.dtype) -> None:
    """Fill ``model``, a ``GPT(checkpoint.config)`` made on the meta device, with real CPU parameters.

    They are in ``dtype``; those of the layer norms, which compute in float32 whatever the dtype, are in float32. One tensor
    is read at a time, so memory holds the model and the largest stored tensor. No parameter requires a gradient; a tied head
    stays tied.

    Raises:
        ModelError: the files have changed since the checkpoint was opened.
    """
    # One buffer for all: a buffer for each would leave holes between the parameters that the allocator cannot give back.
    scratch = torch.empty(max(stored.nbytes for stored in checkpoint.weights.values()), dtype=torch.uint8)
    for name, stored in checkpoint.weights.items():
        module, _, leaf = name.rpartition(".")
        kept = torch.float32 if ".ln_" in name else dtype
        values = stored.read(scratch)
        weight = torch.empty(stored.shape, dtype=kept).copy_(values)
        if stored.query_scale != 1:
            queries = len(weight) // 3
            weight[:queries] = values[:queries].float() * stored.query_scale
        setattr(model.get_submodule(module), leaf, nn.Parameter(weight, requires_grad=False))
    if checkpoint.config.tied_head:
        model.lm_head.weight = model.get_parameter(_EMBEDDING)


# --- the embedded model ---------------------------------------------------------------------------------------------------


def open_embedded(directory: Path) -> Checkpoint:
    """``model.safetensors``, with a `GPTConfig` as JSON in its metadata, and ``vocab.json``, a list of characters."""

    def wrong(what: str) -> ModelError:
        return ModelError("model", "shakespeare", f"{what}; install gptsweep again")

    if not (directory / "model.safetensors").is_file():
        raise wrong(f"the embedded model is not in {directory}")
    stored, metadata = read_safetensors(directory / "model.safetensors", "model", "shakespeare")
    try:
        config = GPTConfig(**json.loads(metadata["config"]))
        tokenizer = CharTokenizer(json.loads((directory / "vocab.json").read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise wrong(f"the embedded model in {directory} is damaged ({error})") from error
    return _checkpoint(config, tokenizer, _fit(config, stored, "model", "shakespeare"), "model", "shakespeare")


# --- nanoGPT --------------------------------------------------------------------------------------------------------------


def open_nanogpt(out_dir: str, meta: str | None = None, name: str = NANOGPT_FILE) -> Checkpoint:
    """A checkpoint as nanoGPT's ``train.py`` writes it to its ``out_dir``.

    Args:
        out_dir: the directory.
        meta: the path of its ``meta.pkl``, or `GPT2_META` for GPT-2's encoding; None looks for one.
        name: the checkpoint's file in ``out_dir``.
    """
    key = "model.out_dir"
    directory = Path(out_dir).expanduser()
    path = directory / name
    if not path.exists():
        raise _no_checkpoint(directory, out_dir, name)
    file = TorchFile(path, key, out_dir)
    contents = mapping_of(file.contents) or {}
    weights = mapping_of(contents.get("model"))
    if weights is None or "model_args" not in contents:
        raise ModelError(key, out_dir, f"{path} is not a checkpoint of nanoGPT's train.py: it has no 'model' and 'model_args'")
    config = _nanogpt_config(contents["model_args"], path.name, key, out_dir)
    stored = _by_name(_tensors(weights, file, path, key, out_dir), key, out_dir)
    fitting = _fit(config, stored, key, out_dir)
    training = mapping_of(contents.get("config")) or {}
    tokenizer = _nanogpt_tokenizer(directory, training, meta, config, out_dir)
    return _checkpoint(config, tokenizer, fitting, key, out_dir)


def _tensors(
    weights: Mapping[Any, Any], file: TorchFile, path: Path, key: str, value: str
) -> Iterable[tuple[str, StoredTensor]]:
    """Where each tensor of a state dict lies; what is no tensor is left out.

    Raises:
        ModelError: a tensor is of a kind that has no plain data: sparse, quantised, a subclass.
    """
    for name, tensor in weights.items():
        if isinstance(tensor, View):
            yield str(name), file.stored(str(name), tensor)
        elif isinstance(tensor, Inert) and tensor.path.startswith("torch."):
            what = f"holds {brief(name)} as {tensor.path}; gptsweep reads plain tensors, neither sparse nor quantised"
            raise ModelError(key, value, f"{path} {what}")


def _no_checkpoint(directory: Path, out_dir: str, name: str) -> ModelError:
    if directory.is_dir():
        if beside := sorted(found.name for found in directory.glob("*.pt")):
            more = f" and {len(beside) - 5} more" if len(beside) > 5 else ""
            return ModelError("model.file", name, f"is not in {out_dir}; there: {', '.join(beside[:5])}{more}")
        if name != NANOGPT_FILE:
            return ModelError("model.file", name, f"is not in {out_dir}, nor is any other *.pt")
    others = sorted(str(found.parent) for found in Path().glob(f"*/{NANOGPT_FILE}"))
    hint = f"; there is one in {', '.join(others[:5])}" if others else "; give the out_dir of nanoGPT's train.py"
    if directory.is_dir():
        return ModelError("model.out_dir", out_dir, f"there is no {NANOGPT_FILE} in this directory{hint}")
    missing = "is a file, not a directory" if directory.exists() else f"no such directory in {Path.cwd()}"
    return ModelError("model.out_dir", out_dir, f"{missing}{hint}")


def _nanogpt_config(saved: Any, name: str, key: str, value: str) -> GPTConfig:
    def wrong(what: str) -> ModelError:
        return ModelError(key, value, f"the 'model_args' in {name} {what}; is it a checkpoint of nanoGPT's train.py?")

    if (args := mapping_of(saved)) is None:
        raise wrong("are not a dictionary")
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    if missing := [each for each in names if each not in args]:
        raise wrong(f"have no {missing[0]}")
    sizes: dict[str, Any] = {each: args[each] for each in names}
    if odd := next((each for each in names if not _is_size(sizes[each])), None):
        raise wrong(f"have {odd}={brief(sizes[odd])}, which is not a whole number below 2**31")
    bias = args.get("bias", True)
    if bias is not None and not isinstance(bias, (bool, int)):
        raise wrong(f"have bias={brief(bias)}, which is neither True nor False")
    try:
        return GPTConfig(**sizes, bias=bool(bias), activation="gelu")
    except ValueError as error:
        raise wrong(f"cannot be ({error})") from error


def _is_size(value: object) -> bool:
    return type(value) is int and abs(value) <= _GREATEST_SIZE


def _nanogpt_tokenizer(
    out_dir: Path, training: Mapping[str, Any], meta: str | None, config: GPTConfig, value: str
) -> CharTokenizer | GPT2Tokenizer:
    size = config.vocab_size
    if meta == GPT2_META:
        if size < GPT2_VOCAB:
            has = f"GPT-2's encoding has {GPT2_VOCAB} tokens, more than the {size} of the checkpoint in {value}"
            raise ModelError("model.meta", meta, f"{has}; give the path of the meta.pkl of the data it was trained on")
        return GPT2Tokenizer()
    places = [Path(meta).expanduser()] if meta is not None else _meta_places(out_dir, training.get("dataset"))
    path = next((place for place in places if meta is not None or place.is_file()), None)
    if path is not None:
        tokenizer = read_meta(path, size)
        log.info("vocabulary of %s", path)
        if size - tokenizer.vocab_size >= PADDING:
            has = f"has {tokenizer.vocab_size} tokens, and the checkpoint in {value} has {size}, which is more than padding"
            gpt2s = f", or model.meta={GPT2_META} if it is GPT-2's encoding" if size > GPT2_VOCAB else ""
            raise ModelError("model.meta", str(path), f"{has}; give the meta.pkl of the data it was trained on{gpt2s}")
        return tokenizer
    looked = ", ".join(map(str, places))
    if not 0 <= size - GPT2_VOCAB < PADDING:
        has = f"no meta.pkl found ({looked}), and the checkpoint's vocabulary of {size} is not GPT-2's"
        gpt2s = f"; if it is, with more padding: model.meta={GPT2_META}" if size > GPT2_VOCAB else ""
        raise ModelError("model.meta", None, f"{has}; give the path of the meta.pkl of the data it was trained on{gpt2s}")
    log.info("no meta.pkl found (%s): GPT-2 encoding", looked)
    return GPT2Tokenizer()


def _meta_places(out_dir: Path, dataset: object) -> list[Path]:
    """Where ``meta.pkl`` is looked for. ``dataset`` comes out of the checkpoint, so it must not lead out of ``data/``."""
    places = [out_dir / "meta.pkl"]
    if isinstance(dataset, str) and re.fullmatch(r"(?!.*\.\.)\w[\w.-]*(/\w[\w.-]*)*", dataset):
        places += [Path("data", dataset, "meta.pkl"), out_dir.parent / "data" / dataset / "meta.pkl"]
    elif dataset is not None:
        log.warning("the checkpoint's dataset name %s is not looked up: it is not a plain name", brief(dataset))
    return places


# --- Hugging Face ---------------------------------------------------------------------------------------------------------


class ModelFiles(Protocol):
    """The files of a Hugging Face model; ``key`` and ``value`` name it in errors.

    ``unreachable``: why the place where they are kept could not be asked for a file, None as long as it could.
    """

    key: str
    value: str
    unreachable: str | None

    def find(self, name: str) -> Path | None:
        """The path of a file of the model, None where it has none of that name."""
        ...

    def absent(self, what: str) -> ModelError:
        """The error that says that ``what`` is needed and not there."""
        ...


class LocalFiles:
    """The model's files in a directory."""

    def __init__(self, directory: Path, key: str, value: str) -> None:
        self.key, self.value = key, value
        self.unreachable: str | None = None
        self._directory = directory

    def find(self, name: str) -> Path | None:
        path = self._directory / name
        return path if path.is_file() else None

    def absent(self, what: str) -> ModelError:
        return ModelError(self.key, self.value, f"the directory has no {what}")


class HubFiles:
    """The model's files on the Hugging Face hub, through the hub library's cache."""

    def __init__(self, repo: str, key: str, value: str) -> None:
        self.key, self.value = key, value
        self.unreachable: str | None = None
        self._repo = repo
        self._hub = _hub()
        constants = self._hub.constants
        # The library tries five times with longer and longer waits: right for a hub that stumbles, half a minute for none.
        self._down = None if constants.HF_HUB_OFFLINE else _no_connection(constants.ENDPOINT)

    def find(self, name: str) -> Path | None:
        errors = self._hub.errors
        try:
            fetched = self._hub.hf_hub_download(
                self._repo, name, library_name="gptsweep", local_files_only=self._down is not None
            )
            return Path(fetched)
        except errors.LocalEntryNotFoundError as error:
            if self._hub.try_to_load_from_cache(self._repo, name) is self._hub._CACHED_NO_EXIST:
                return None  # the hub said so when it was last asked
            offline = self._hub.constants.HF_HUB_OFFLINE
            self.unreachable = (
                "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({self._down or _cause(error)})"
            )
            return None
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            how = f"ask for access at https://huggingface.co/{self._repo} and log in with: hf auth login"
            raise self._wrong(f"{self._repo} is gated; {how}") from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            local = "neither a directory here nor a model on the hub" if self.key == "model.path" else "not a model on the hub"
            raise self._wrong(f"{self._repo} is {local} (a private one needs: hf auth login)") from error
        # The library's other errors are those of whichever HTTP library it uses (three so far), and the disk's.
        except Exception as error:
            raise self._wrong(
                f"fetching {name} of {self._repo} failed ({_cause(error)}); run again, or {self._by_hand()}"
            ) from error

    def absent(self, what: str) -> ModelError:
        if self.unreachable:
            return self._wrong(f"{what} of {self._repo} is not in the cache and {self.unreachable}; {self._by_hand()}")
        return self._wrong(f"{self._repo} has no {what}")

    def _by_hand(self) -> str:
        directory = self._repo.rpartition("/")[2]
        fetch = f"hf download {self._repo} --include '*.json' '*.safetensors' merges.txt --local-dir {directory}"
        return f"fetch it on a machine with network: {fetch}; then use: model=hf model.path={directory}"

    def _wrong(self, what: str) -> ModelError:
        return ModelError(self.key, self.value, what)


def _no_connection(endpoint: str) -> str | None:
    """Why no connection to ``endpoint`` can be made within two seconds; None where one can, or a proxy stands between."""
    url = urlsplit(endpoint)
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    if getproxies().get(url.scheme) and not proxy_bypass(host):
        return None
    found: list[str | None] = []

    def connect() -> None:
        until = time.monotonic() + PROBE_SECONDS
        while not found:
            try:
                with socket.create_connection((host, port), timeout=PROBE_SECONDS):
                    found.append(None)
            except OSError as error:
                if time.monotonic() + 0.2 > until:
                    found.append(f"{type(error).__name__}: {error}")
                else:
                    threading.Event().wait(0.2)

    thread = threading.Thread(target=connect, daemon=True)  # looking a name up knows no time limit
    thread.start()
    thread.join(PROBE_SECONDS)
    return found[0] if found else "no answer"


def _hub() -> Any:
    """The hub library, with its telemetry off."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Imported late: it costs a quarter of a second that only models from the hub need, and reads its settings at import.
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors

    return huggingface_hub


def _cause(error: BaseException) -> str:
    """The innermost reason of a hub error, in one line."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].removesuffix(": ")


def _cached_name(name: str) -> str:
    """Hub id of one of OpenAI's models. nanoGPT fetches them by their old ids, and what is cached so is not fetched again."""
    cached = _hub().try_to_load_from_cache
    current = f"{HUB_OWNER}/{name}"
    has_old = isinstance(cached(name, "model.safetensors"), str) and isinstance(cached(name, "config.json"), str)
    return name if has_old and not isinstance(cached(current, "model.safetensors"), str) else current


def _files_at(path: str) -> ModelFiles:
    directory = Path(path).expanduser()
    if directory.is_dir():
        return LocalFiles(directory, "model.path", path)
    if directory.exists():
        raise ModelError("model.path", path, "is a file; give the directory that holds config.json and the safetensors")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        raise ModelError("model.path", path, f"no such directory in {Path.cwd()}, and not a hub id such as {HUB_OWNER}/gpt2")
    return HubFiles(path, "model.path", path)


def open_hf(files: ModelFiles, tokenizer: Tokenizer | None = None) -> Checkpoint:
    """A model of the GPT-2 architecture as `transformers` saves it: ``config.json``, safetensors, and its tokenizer's files."""
    if (path := files.find("config.json")) is None:
        if files.find("adapter_config.json") is not None:
            raise ModelError(files.key, files.value, f"is an adapter of PEFT without its model; {_MERGE}")
        raise files.absent("config.json")
    settings = _hf_json(path, files)
    config = _hf_config(settings, files)
    stored = {
        name: tensor.transposed() if re.search(r"\.c_(attn|proj|fc)\.weight$", name) else tensor
        for name, tensor in _by_name(_hf_tensors(files), files.key, files.value).items()
    }
    weights = _scaled(_fit(config, stored, files.key, files.value), settings, config)
    return _checkpoint(config, tokenizer or _hf_tokenizer(settings, config, files), weights, files.key, files.value)


def _hf_json(path: Path, files: ModelFiles) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(files.key, files.value, f"its {path.name} cannot be read ({error})") from error


def _scaled(weights: Mapping[str, StoredTensor], settings: Mapping[str, Any], config: GPTConfig) -> dict[str, StoredTensor]:
    """The weights of a model that scales its attention in a way of its own, which is put into the queries instead."""
    scaled = dict(weights)
    for layer in range(config.n_layer):
        scale = 1.0 if settings.get("scale_attn_weights", True) else math.sqrt(config.head_size)
        scale /= layer + 1 if settings.get("scale_attn_by_inverse_layer_idx", False) else 1
        for name in (f"transformer.h.{layer}.attn.c_attn.weight", f"transformer.h.{layer}.attn.c_attn.bias"):
            scaled[name] = replace(scaled[name], query_scale=scale)
    return scaled


def _hf_config(settings: Any, files: ModelFiles) -> GPTConfig:
    def wrong(what: str) -> ModelError:
        return ModelError(files.key, files.value, what)

    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind != "gpt2":
        raise wrong(
            f"its config.json names the architecture {brief(kind)}; gptsweep runs model_type 'gpt2' (GPT-2, distilgpt2, …)"
        )
    for name, usual in {"add_cross_attention": False, "quantization_config": None}.items():
        if settings.get(name, usual) != usual:
            raise wrong(f"its config.json has {name}={brief(settings[name])}, which gptsweep does not run")
    for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"):
        if not isinstance(settings.get(name, True), bool):
            raise wrong(f"its config.json has {name}={brief(settings[name])}, which is neither true nor false")
    activation = settings.get("activation_function", "gelu_new")
    if activation not in list(_ACTIVATIONS):  # a list, for a damaged config may hold what has no hash
        raise wrong(f"its activation_function is {brief(activation)}; gptsweep runs {', '.join(_ACTIVATIONS)}")
    names = {"vocab_size": "vocab_size", "n_positions": "block_size", "n_layer": "n_layer", "n_head": "n_head"}
    names |= {"n_embd": "n_embd", "n_inner": "n_inner"}
    shape = {ours: settings[theirs] for theirs, ours in names.items() if settings.get(theirs) is not None}
    if odd := next((name for name, size in shape.items() if not _is_size(size)), None):
        raise wrong(f"its config.json has {odd}={brief(shape[odd])}, which is not a whole number below 2**31")
    epsilon = settings.get("layer_norm_epsilon", 1e-5)
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon <= 1:
        raise wrong(f"its config.json has layer_norm_epsilon={brief(epsilon)}, which is not a number from 0 to 1")
    try:
        return GPTConfig(
            **shape,
            tied_head=settings.get("tie_word_embeddings", True),
            activation=_ACTIVATIONS[activation],
            layer_norm_epsilon=float(epsilon),
        )
    except (TypeError, ValueError) as error:
        raise wrong(f"its config.json cannot be ({error})") from error


def _hf_tensors(files: ModelFiles) -> Iterable[tuple[str, StoredTensor]]:
    """The tensors of the first of transformers' weight files that the model has, whole or in shards."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (path := files.find(whole)) is not None:
            return _hf_file(path, files)
        if (index := files.find(f"{whole}.index.json")) is not None:
            return _hf_shards(index, files, whole.rpartition(".")[2])
    raise files.absent("model.safetensors, model.safetensors.index.json or pytorch_model.bin")


def _hf_shards(index: Path, files: ModelFiles, kind: str) -> Iterable[tuple[str, StoredTensor]]:
    places = _hf_json(index, files)
    places = places.get("weight_map") if isinstance(places, dict) else None
    shards: list[Any] = list(places.values()) if isinstance(places, dict) else [None]
    if not all(isinstance(shard, str) and re.fullmatch(rf"\w[\w.-]*\.{kind}", shard) for shard in shards):
        raise ModelError(files.key, files.value, f"its {index.name} is damaged (a shard is not a plain file name)")
    for shard in sorted(set(shards)):
        if (path := files.find(shard)) is None:
            raise files.absent(shard)
        yield from _hf_file(path, files)


def _hf_file(path: Path, files: ModelFiles) -> Iterable[tuple[str, StoredTensor]]:
    if path.suffix == ".safetensors":
        return read_safetensors(path, files.key, files.value)[0].items()
    file = TorchFile(path, files.key, files.value)
    if (weights := mapping_of(file.contents)) is None:
        raise ModelError(files.key, files.value, f"{path} holds no weights by name")
    return _tensors(weights, file, path, files.key, files.value)


def _hf_tokenizer(settings: Mapping[str, Any], config: GPTConfig, files: ModelFiles) -> Tokenizer:
    end = settings.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    eot_id = end if isinstance(end, int) else None
    found = read_hf_tokenizer(_sized(files), limit=config.vocab_size, eot_id=eot_id, key=files.key, value=files.value)
    if found is not None:
        return found
    what = "tokenizer.json, or vocab.json with merges.txt"
    gpt2 = GPT2Tokenizer()
    if files.unreachable:
        raise files.absent(what)
    if not gpt2.vocab_size <= config.vocab_size <= GPT2_PADDED_VOCAB:
        raise files.absent(f"{what}, and its vocabulary of {config.vocab_size} is not GPT-2's")
    log.warning("%s has no %s: GPT-2 encoding", files.value, what)
    return gpt2


def _sized(files: ModelFiles) -> Callable[[str], Path | None]:
    """``files.find``, which refuses files too large to be a tokenizer's."""

    def find(name: str) -> Path | None:
        path = files.find(name)
        if path is not None and path.stat().st_size > JSON_BYTES:
            raise ModelError(files.key, files.value, f"its {name} is larger than {JSON_BYTES >> 20} MiB")
        return path

    return find


# --- common to all sources ------------------------------------------------------------------------------------------------


_MERGE = "merge it with peft's model.merge_and_unload(), then save_pretrained(DIR)"


def _by_name(tensors: Iterable[tuple[str, StoredTensor]], key: str, value: str) -> dict[str, StoredTensor]:
    """Tensors by nanoGPT's names, without what compiling, parallel training and PEFT put in front, and with ``transformer.``.

    Raises:
        ModelError: two have the same name then, or they are an adapter's, not yet merged into the model.
    """
    found: dict[str, StoredTensor] = {}
    for full, tensor in tensors:
        if ".lora_" in full or ".modules_to_save." in full:
            raise ModelError(key, value, f"holds an adapter of PEFT beside the weights ({full:.80}); {_MERGE}")
        name = re.sub(r"^(module\.|base_model\.|model\.)+", "", full.replace("_orig_mod.", "")).replace(".base_layer.", ".")
        name = f"transformer.{name}" if name.partition(".")[0] in ("wte", "wpe", "h", "ln_f") else name
        if name in found:
            raise ModelError(key, value, f"holds the weight {name:.80} twice, under names that differ in what stands in front")
        found[name] = tensor
    return found


def _checkpoint(
    config: GPTConfig, tokenizer: Tokenizer, fitting: Mapping[str, StoredTensor], key: str, value: str
) -> Checkpoint:
    """A checkpoint of weights that `_fit`: hashed, and the head found tied or not."""
    weights = dict(fitting)
    if tokenizer.vocab_size > config.vocab_size:
        has = f"the tokenizer has {tokenizer.vocab_size} tokens and the model's embedding {config.vocab_size} rows"
        raise ModelError(key, value, f"{has}; it belongs to another model")
    places = list(dict.fromkeys(weights.values()))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(places, pool.map(StoredTensor.sha256, places), strict=True))
    content = {
        name: (str(weight.dtype), weight.shape, weight.stride, digests[weight], *([scale] if scale != 1 else []))
        for name, weight in weights.items()
        for scale in [weight.query_scale]
    }
    tied = content[_HEAD] == content[_EMBEDDING]
    if tied:
        del weights[_HEAD], content[_HEAD]
    elif config.tied_head:
        log.info("the head and the embedding are stored with different values: they are not tied")
    config = replace(config, tied_head=tied)
    decides = json.dumps({"config": asdict(config), "weights": content}, sort_keys=True)
    fingerprint = hashlib.sha256(decides.encode()).hexdigest()
    return Checkpoint(config=config, tokenizer=tokenizer, fingerprint=fingerprint, weights=weights)


def _fit(config: GPTConfig, stored: Mapping[str, StoredTensor], key: str, value: str) -> dict[str, StoredTensor]:
    """Those of ``stored`` that ``GPT(config)`` has, the head always among them.

    Raises:
        ModelError: a weight is missing, has another shape than ``config`` says, is no float, or has no place in a GPT-2, or
            all of them would be larger than their files.
    """

    def wrong(what: str) -> ModelError:
        return ModelError(key, value, what)

    weights = dict(stored)
    if config.tied_head:  # a file may hold either of the two, or both
        for name, twin in ((_EMBEDDING, _HEAD), (_HEAD, _EMBEDDING)):
            if name not in weights and twin in weights:
                weights[name] = weights[twin]

    def require(shapes: Mapping[str, tuple[int, ...]]) -> None:
        if missing := [name for name in shapes if name not in weights]:
            raise wrong(f"the weights {_some(missing)} are missing")
        for name, shape in shapes.items():
            if weights[name].shape != shape:
                has = f"the weight {name} has the shape {list(weights[name].shape)}"
                raise wrong(f"{has}, and by the model's own settings it should be {list(shape)}")
            if weights[name].dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                raise wrong(f"the weight {name} is stored as {weights[name].dtype}; quantised weights cannot be loaded")

    # A tensor may be a view that repeats a few numbers as often as it likes.
    whole = sum(math.prod(place.shape) * place.dtype.itemsize for place in set(stored.values()))
    if whole > (held := sum(file.size for file in {place.file for place in stored.values()})):
        raise wrong(f"its weights would take {whole:,} bytes, and the file holds {held:,}")
    # The outline first: a damaged config may ask for a model too large even to lay out.
    layers = itertools.chain([config.n_layer - 1], range(config.n_layer))
    norms = (f"transformer.h.{layer}.ln_1.weight" for layer in layers)
    if (absent := next((name for name in norms if name not in weights), None)) is not None:
        raise wrong(f"the weights {absent} are missing")
    require(
        {
            _EMBEDDING: (config.vocab_size, config.n_embd),
            "transformer.wpe.weight": (config.block_size, config.n_embd),
            "transformer.h.0.mlp.c_fc.weight": (config.n_hidden, config.n_embd),
        }
    )
    with torch.device("meta"):
        parameters = GPT(replace(config, tied_head=False)).named_parameters()
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
    require(shapes)
    others = [name for name in stored if name not in shapes and not re.search(r"\.attn\.(masked_)?bias$", name)]
    if strange := [name for name in others if name.startswith(("transformer.", "lm_head."))]:
        raise wrong(f"it has weights that a GPT-2 of its settings does not have: {_some(strange)}")
    if others:
        log.info("weights outside the language model are left out: %s", _some(others))
    return {name: weights[name] for name in shapes}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(name[:80] for name in names[:4]) + more
