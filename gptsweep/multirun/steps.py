"""Sweep over training steps: expand ``model.step=glob(*)`` to the steps in the checkpoint directory."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString
from hydra.errors import HydraException

from ..errors import ConfigError
from ..models.files.nanochat_directory import steps_in
from .overrides import quoted

_STEP = "model.step"
_DIRECTORY = "model.out_dir"


def with_steps(arguments: Sequence[str], out_dir: str) -> list[str]:
    """Replace ``model.step=glob(…)`` in the arguments of a sweep by the matching steps, in ascending order.

    Args:
        arguments: overrides; a later one replaces an earlier one of the same key.
        out_dir: the checkpoint directory if no argument names one.

    Raises:
        ConfigError: no step matches, or the directories of the sweep hold different steps.
        ModelError: a directory holds no checkpoint of nanochat.
    """
    found = [_parsed(argument) for argument in arguments]
    if not any(override is not None and _is_glob(override) for override in found):
        return list(arguments)
    named = [override for override in found if override is not None and override.key_or_group == _DIRECTORY]
    directories = _values(named[-1]) if named else [out_dir]
    return [
        _listed(argument, override, directories) if override is not None and _is_glob(override) else argument
        for argument, override in zip(arguments, found, strict=True)
    ]


def _parsed(argument: str) -> Override | None:
    if argument.lstrip("+").partition("=")[0] not in (_STEP, _DIRECTORY):
        return None
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:  # composing the config reports it
        return None


def _is_glob(override: Override) -> bool:
    return override.key_or_group == _STEP and isinstance(override.value(), Glob)


def _values(override: Override) -> list[str]:
    values = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
    return [value.text if isinstance(value, QuotedString) else str(value) for value in values]


def _listed(argument: str, override: Override, directories: Sequence[str]) -> str:
    glob = override.value()
    assert isinstance(glob, Glob)
    typed = override.get_value_string()
    each = [glob.filter([str(step) for step in steps_in(directory)]) for directory in directories]
    for directory, steps in zip(directories, each, strict=True):
        if not steps:
            some = ", ".join(map(str, list(steps_in(directory))[:6]))
            raise ConfigError(_STEP, typed, f"matches no step in {directory}, which has {some}")
        if set(steps) != set(each[0]):
            raise ConfigError(_STEP, typed, f"matches other steps in {directory} than in {directories[0]}; list the steps")
    prefix = argument.partition("=")[0]
    return f"{prefix}={','.join(map(quoted, sorted(each[0], key=int)))}"
