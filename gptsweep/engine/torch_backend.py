"""This package's backend: a model in torch, its `Engine`, and the facts that a `Backend` states."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from ..display import get_logger
from ..models.architecture import Architecture
from ..models.checkpoint import Checkpoint
from ..models.files.generated_text import stop_matcher
from ..models.files.tokenizers import Tokenizer
from ..models.loading import LoadedModel, layer_kinds, load_model, resolve_device, resolve_dtype
from ..models.registry import open_checkpoint
from ..models.shipping import pack, unpack
from ..records import ENGINE_VERSION, Completion, DeviceSettings, ModelSource, Prefix, Row
from .backend import OnStep, Provenance, Workload
from .engine import Engine, out_of_memory
from .model_runner import HAS_KERNELS
from .sampler import stream_at

log = get_logger(__name__)

_INSTRUCTIONS = ("avx", "amx", "fma", "f16c", "neon", "sve", "sme", "asimd", "bf16", "fp16", "i8mm", "dot")
_LIMITS = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR",
)  # fmt: skip
"""Environment variables that make libraries use other code than the processor allows."""


class TorchBackend:
    """A loaded model as a `Backend`, a `Scorer` and a `Featurizer`.

    Args:
        loaded: the model, on its device and ready for inference.
        max_rows: the maximum number of rows decoded together; None derives it from free memory.
    """

    def __init__(self, loaded: LoadedModel, max_rows: int | None) -> None:
        tokenizer = loaded.tokenizer
        self.model: Architecture = loaded.model
        self.engine = Engine(
            loaded.model,
            vocab_size=tokenizer.vocab_size,
            max_rows=max_rows,
            stop_matcher=partial(stop_matcher, tokenizer),
            free_cores=loaded.free_cores,
        )
        self.vocab_size = tokenizer.vocab_size
        self.block_size: int | None = loaded.model.block_size
        self.extends_to = loaded.model.extends_to
        self.overflow = loaded.model.OVERFLOW
        self.end_tokens = tokenizer.end_ids
        self.fingerprint = loaded.fingerprint
        self.promise = self.engine.promise
        self.max_rows = max_rows
        self.provenance = Provenance(
            dtype=loaded.dtype,
            device=loaded.device.type,
            arithmetic=loaded.arithmetic,
            threads=torch.get_num_threads(),
            made_by={
                "torch": str(torch.__version__),
                "engine_version": ENGINE_VERSION,
                "promise": self.promise,
                "layers": ",".join(layer_kinds(self.model)),
                **_machine(self.engine.device),
            },
            versions={"torch": str(torch.__version__)},
            step=loaded.step,
        )

    def resumes(self, prefix: Prefix) -> bool:
        """Implement `Backend.resumes`."""
        try:
            if prefix.stream is not None:
                stream_at(prefix.stream)
        except RuntimeError:
            return False
        return True

    def run(self, rows: Iterable[Row], workload: Workload, on_step: OnStep | None) -> Iterator[Completion]:
        """Implement `Backend.run`."""
        try:
            yield from self.engine.run(rows, workload, on_step)
        except RuntimeError as error:  # torch's allocators raise these
            if out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise

    def score(self, ids: Sequence[int], start: int, end: int) -> tuple[float, float]:
        """Implement `Scorer.score`. A token is scored with at least half a context before it, if the text has that much."""
        block_size = self.block_size or end
        stride = max(1, block_size // 2)
        logprob = entropy = 0.0
        with torch.inference_mode():
            for first in range(start, end, stride):
                last = min(end, first + stride)
                window = torch.tensor([ids[max(0, last - 1 - block_size) : last - 1]], device=self.engine.device)
                logits = self.model(window)[0, first - last :, : self.vocab_size].float()
                logs = torch.log_softmax(logits, dim=-1)
                chosen_ids = torch.tensor(ids[first:last], device=logs.device)
                logprob += logs.gather(1, chosen_ids[:, None]).sum().item()
                entropy -= (logs.exp() * logs).sum().item()
        return logprob / (end - start), entropy / (end - start)

    def features(self, ids: Sequence[int]) -> list[float]:
        """Implement `Featurizer.features`: the residual stream after the last block, normalised."""
        with torch.inference_mode():
            window = torch.tensor([ids[: self.block_size]], device=self.engine.device)
            positions = torch.arange(window.shape[-1], device=window.device)
            self.model.reserve(window.shape[-1])
            hidden = self.model.hidden(window, positions, self.model.attend_within)
        values: list[float] = hidden[0, -1].float().tolist()
        return values


class TorchBackends:
    """Opens models in torch, including those whose weights were shipped (`Ships`)."""

    def __init__(self) -> None:
        self._received: dict[ModelSource, Checkpoint] = {}

    def resolve(self, settings: DeviceSettings) -> tuple[str, str]:
        """Implement `Backends.resolve`."""
        device = resolve_device(settings.name)
        return resolve_dtype(settings.dtype, device), device.type

    def open(self, source: ModelSource, settings: DeviceSettings) -> tuple[TorchBackend, Tokenizer]:
        """Implement `Backends.open`."""
        try:
            loaded = load_model(source, settings, self._received.pop(source, None))
            backend = TorchBackend(loaded, settings.max_rows)
        except RuntimeError as error:  # torch's allocators raise these
            if out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise
        if not backend.promise:
            log.warning("on this device samples may differ with the number of rows decoded together (promise: false)")
        return backend, loaded.tokenizer

    def pack(self, source: ModelSource) -> tuple[Checkpoint, Iterator[NDArray[np.uint8]]]:
        """Implement `Ships.pack`."""
        checkpoint = open_checkpoint(source, hashed=False)
        return checkpoint, pack(checkpoint)

    def receive(self, source: ModelSource, outline: object, weights: Sequence[NDArray[np.uint8]]) -> None:
        """Implement `Ships.receive`."""
        assert isinstance(outline, Checkpoint)
        self._received[source] = unpack(outline, weights)


@cache
def _machine(device: torch.device) -> dict[str, object]:
    """The kind of machine, as far as it determines bits."""
    if device.type == "cuda":
        return {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    able = torch.cpu.get_capabilities()
    instructions = [name for name, has in able.items() if has is True and name.startswith(_INSTRUCTIONS)]
    return {
        "processor": able.get("cpu_name") or platform.processor() or platform.machine(),
        "instructions": " ".join(sorted(instructions)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": _kernels(),
        "limits": " ".join(f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ),
    }


def _kernels() -> str:
    """The compiler of the kernels' machine code; ``torch`` if there is no numba and no kernel."""
    if not HAS_KERNELS:
        return "torch"
    from ..kernels.runtime import llvm_version  # late: it takes numba, which has no wheel for some platforms

    return f"LLVM {llvm_version()}"
