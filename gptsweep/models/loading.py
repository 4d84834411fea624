"""Load a model onto its device: choose its dtype, linear layers and threads, and compile it if asked to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..display import get_logger
from ..errors import DeviceError
from ..free_cores import FreeCores
from ..records import DeviceSettings, ModelSource
from ..threads import own_count
from .architecture import Architecture
from .checkpoint import Checkpoint, load_weights
from .files.tokenizers import Tokenizer
from .linear import Int8Linear, can_pack, int8_was_cut_off, kept_in, kind_of, pack
from .registry import open_checkpoint

log = get_logger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready for inference, and its tokenizer.

    ``fingerprint`` and ``step`` are those of its `Checkpoint`. ``dtype`` is resolved, never ``auto``. ``arithmetic`` names what
    the layers compute in, for `point_id`: ``dtype``, or ``int8 in halves`` (see `int8_was_cut_off`). ``free_cores`` says how
    many threads to use; None: as many as torch has.
    """

    model: Architecture
    tokenizer: Tokenizer
    fingerprint: str
    device: torch.device
    dtype: str
    arithmetic: str
    free_cores: FreeCores | None = None
    step: int | None = None


def load_model(source: ModelSource, settings: DeviceSettings, checkpoint: Checkpoint | None = None) -> LoadedModel:
    """Find a model, read its weights, and prepare its layers for the device.

    Args:
        source: names the model.
        settings: the device, dtype and threads to run it with.
        checkpoint: the model, if it has been found already.

    Raises:
        ModelError: there is no such model, or it cannot be read.
        DeviceError: the device, dtype or compiler is not available.
    """
    device = resolve_device(settings.name)
    dtype = resolve_dtype(settings.dtype, device)
    free_cores = set_threads(settings)
    checkpoint = checkpoint or open_checkpoint(source)
    model = checkpoint.laid_out()
    load_weights(checkpoint, model, stored_dtype(dtype))
    place(model, device, dtype, packed=not settings.compile)
    if settings.compile:
        if dtype == "int8":
            raise DeviceError("device.compile", True, "cannot be combined with device.dtype=int8; use one of them")
        compile_model(model)
    return LoadedModel(
        model=model,
        tokenizer=checkpoint.tokenizer,
        fingerprint=checkpoint.fingerprint,
        device=device,
        dtype=dtype,
        arithmetic="int8 in halves" if int8_was_cut_off(model) else dtype,
        free_cores=free_cores if device.type == "cpu" else None,
        step=checkpoint.step,
    )


def stored_dtype(dtype: str) -> torch.dtype:
    """Return the dtype in which parameters are read, before `place`. ``dtype`` is a resolved ``device.dtype``."""
    return torch.float32 if dtype == "int8" else _DTYPES[dtype]


def bytes_of_weight(dtype: str, device: torch.device) -> int:
    """Return the bytes per weight of a linear layer after `place`. ``dtype`` is a resolved ``device.dtype``."""
    if dtype == "int8":
        return 1
    stored = stored_dtype(dtype)
    return (kept_in(stored) if device.type == "cpu" and can_pack(stored) else stored).itemsize


def place(model: Architecture, device: torch.device, dtype: str, *, packed: bool = True) -> None:
    """Move a loaded model to its device, or, on a CPU, pack its linear layers for ``dtype``."""
    model.eval()
    if device.type != "cpu":
        model.to(device)
    elif dtype == "int8":
        pack(model, Int8Linear)
    elif can_pack(_DTYPES[dtype]) and packed:
        pack(model)


def layer_kinds(model: torch.nn.Module) -> list[str]:
    """Return the sorted names of the kinds of linear layers in ``model``. They affect bits, so manifests record them."""
    layers = [module for module in model.modules() if type(module).__name__.endswith("Linear")]
    return sorted({kind_of(layer) for layer in layers})


def set_threads(settings: DeviceSettings) -> FreeCores | None:
    """Set torch's threads to ``device.threads``; if that is null, reduce them to the cores that this process may use.

    Returns:
        An object that adapts the number of threads from step to step. None if the user chose a number, if there is only one
        thread, or for a compiled model, which is compiled for a fixed number of threads.
    """
    own = own_count()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
        return None
    if own is None:
        return None
    if own < torch.get_num_threads():
        torch.set_num_threads(own)
    most = torch.get_num_threads()
    return FreeCores(most) if most > 1 and not settings.compile else None


def resolve_device(name: str) -> torch.device:
    """Return the torch device of ``device.name``; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        DeviceError: this machine does not have it.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count() if cuda else 0)), *(["mps"] if mps else [])]
    if f"{device.type}:{device.index or 0}" not in available and device.type not in available:
        raise DeviceError("device.name", name, f"is not available; this machine has {', '.join(available)}")
    return device


def resolve_dtype(name: str, device: torch.device) -> str:
    """Resolve ``device.dtype``; ``auto`` is bfloat16 on a GPU that supports it, float16 on other CUDA GPUs, else float32.

    Raises:
        DeviceError: the device has no int8 layers.
    """
    if name == "int8" and (device.type != "cpu" or not can_pack(torch.int8)):
        raise DeviceError("device.dtype", name, f"int8 needs a CPU with oneDNN's int8 layers, not {device}; try bfloat16")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "float32"


def compile_model(model: Architecture) -> None:
    """Compile the model's layers with `torch.compile`, and check that it works on this machine.

    Raises:
        DeviceError: it does not.
    """
    device = model.embedding.device
    model.compile_blocks("max-autotune-no-cudagraphs" if device.type == "cuda" else None)
    try:
        with torch.inference_mode():
            model.between_attentions(torch.zeros(2, model.embedding.shape[1], device=device))
    except Exception as error:  # the compiler's many errors share no base class
        log.debug("torch.compile failed", exc_info=True)
        what = f"torch.compile does not work here ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
        raise DeviceError(
            "device.compile", True, f"{what}; install a C++ compiler such as g++, or set device.compile=false"
        ) from error
