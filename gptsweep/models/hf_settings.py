"""The settings in a ``config.json`` of `transformers`: read by name and checked, and none that changes the arithmetic ignored.

Both spellings are known: ``rope_theta`` and ``rope_scaling`` beside one another, and ``rope_parameters`` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ModelError, brief
from .layers import Activation, LinearScaling, Llama3Scaling, RotaryConfig

MOST_LAYERS = 10_000
"""A config that names more than this is damaged; what stands for each layer is not to fill the memory."""

HF_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Activations by transformers' names."""


class HFSettings:
    """What a ``config.json`` holds.

    Args:
        settings: the file's contents.
        wrong: makes the error for what it says.
    """

    def __init__(self, settings: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> None:
        self._settings, self._wrong = settings, wrong
        self._read: set[str] = set()

    def get(self, name: str) -> Any:
        """The value of a setting; None where there is none."""
        self._read.add(name)
        return self._settings.get(name)

    def refuse(self, name: str, what: str) -> ModelError:
        """The error for the value of a setting."""
        return self._wrong(f"its config.json has {name}={brief(self._settings.get(name))}, {what}")

    def size(self, name: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """A whole number from 1."""
        value = self.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            raise self.refuse(name, f"which is not a whole number from 1 to {most:,}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number, not below 0."""
        value: Any = self.get(name)
        value = default if value is None else value
        if not is_number(value):
            raise self.refuse(name, "which is not a number from 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refuse(name, "which is neither true nor false")
        return value

    def activation(self, name: str, default: str) -> Activation:
        """An activation, by transformers' name."""
        value = self.get(name)
        value = default if value is None else value
        if value not in list(HF_ACTIVATIONS):  # a list, for a damaged config may hold what has no hash
            raise self.refuse(name, f"and gptsweep runs {', '.join(HF_ACTIVATIONS)}")
        return HF_ACTIVATIONS[value]

    def neutral(self, name: str, *usual: object) -> None:
        """Refuse a setting whose value is none of ``usual``, as nothing here honours it."""
        if self.get(name) is not None and not any(type(self.get(name)) is type(u) and self.get(name) == u for u in usual):
            raise self.refuse(name, "which gptsweep does not run")

    def rotary(self, head_size: int, *, base: float = 10_000.0, share: float = 1.0) -> RotaryConfig:
        """Rotary positions, in either spelling; ``base`` and ``share``, of a head, where the file names none."""
        rope = self.get("rope_parameters") or self.get("rope_scaling") or {}
        name = "rope_parameters" if self.get("rope_parameters") else "rope_scaling"
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
        base = self.number("rope_theta", base)
        share = self.number("partial_rotary_factor", share)
        if not isinstance(kind, str) or kind not in _ROPE_KEYS:
            raise self.refuse(name, f"and gptsweep runs the kinds {', '.join(_ROPE_KEYS)}")
        if strange := set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"} - set(_ROPE_KEYS[kind]):
            raise self.refuse(name, f"in which gptsweep does not run {min(map(str, strange))[:80]}")

        def value(key: str, usual: float | None = None) -> float:
            number: Any = rope.get(key)
            number = usual if number is None else number
            if not is_number(number):
                raise self.refuse(name, f"in which {key} is not a number from 0")
            return float(number)

        base, share = value("rope_theta", base), value("partial_rotary_factor", share)
        scaling: Llama3Scaling | LinearScaling | None = None
        if kind == "linear":
            scaling = LinearScaling(factor=value("factor"))
        elif kind == "llama3":
            scaling = Llama3Scaling(
                factor=value("factor"),
                low=value("low_freq_factor"),
                high=value("high_freq_factor"),
                trained=int(value("original_max_position_embeddings")),
            )
        return RotaryConfig(size=int(head_size * share), base=base, scaling=scaling)


_ROPE_KEYS: Mapping[str, Sequence[str]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""The kinds of scaling of rotary positions, and what each takes."""


def is_number(value: object) -> bool:
    """Whether ``value``, out of somebody's file, is a number not below 0 that a float32 can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e38
