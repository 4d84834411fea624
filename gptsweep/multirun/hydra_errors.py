"""Turn errors of Hydra and of the disk into one line that says what would work."""

from __future__ import annotations

import errno
import re
import shlex
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..config import from_omegaconf, meant, unknown_key
from ..config_schema import GROUPS, choices, keys
from ..display import STDOUT
from ..errors import ConfigError, GptsweepError, shown
from .overrides import how_to_quote, quoted

_PLUGINS = {
    "optuna": "hydra-optuna-sweeper",
    "ax": "hydra-ax-sweeper",
    "nevergrad": "hydra-nevergrad-sweeper",
    "joblib": "hydra-joblib-launcher",
    "ray": "hydra-ray-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}
"""The packages of sweepers and launchers that do not come with Hydra."""

_TOO_LONG = re.compile(r"[\d_]{4300}")
"""Matches an integer with more digits than Python converts."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


def explain(error: BaseException, arguments: list[str]) -> str | None:
    """Explain ``error`` in one line that names the key, the value and what would work; None if it is not the user's mistake."""
    message = str(error)
    if isinstance(error, GptsweepError):
        return message
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        if not equals:
            return f"{shown(key)}: must be key=value" + (f"; did you mean {near}=…?" if (near := meant(key)) else "")
        if call := re.match(r"(choice|sort|shuffle)\((.*\bnull\b.*)\)$", value):
            return str(
                ConfigError(key, value, f"Hydra's functions reject null; separate the values with commas instead: {call[2]}")
            )
        how = how_to_quote(key, value) if key in keys() else f"quote it twice: {shlex.quote(f'{key}={quoted(value)}')}"
        return str(ConfigError(key, value, f"Hydra cannot read it; {how}"))
    if match := re.match(
        r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'(?:\n1\. To|$| requires)", message, re.DOTALL
    ):
        key, _, value = match[1].partition("=")
        return str(ConfigError(key, value, f"several values make a sweep, which needs -m; one list is written {key}=[{value}]"))
    if match := re.match(r"Multiple values for ([\w/]+)", message):
        return f"{match[1]}: is already set; write {match[1]}=… without +"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        hint = "; device.name=cuda:1 names one GPU" if group == "device" else ""
        if group in ("hydra/sweeper", "hydra/launcher") and choice in _PLUGINS:
            hint = f"; pip install {_PLUGINS[choice]} adds it"
        return str(ConfigError(group, choice, f"must be one of {', '.join(error.options)}{hint}"))
    if match := re.search(r"To append to your config use \+(.*)|Error merging override (.*)", message, re.DOTALL):
        override = match[1] or match[2]
        if override.startswith("~"):
            return f"{override}: a setting cannot be removed"
        key, _, value = override.lstrip("+").partition("=")
        if isinstance(cause := error.__cause__ or error.__context__, OmegaConfBaseException):
            section_unknown = key.startswith(f"{cause.full_key}.") and key not in keys()
            return str(unknown_key(key, value) if section_unknown else from_omegaconf(cause, value))
    if match := re.match(r"In '(.*)': \w+ raised while composing config:\n(.*?)\n.*full_key: (\S+)", message, re.DOTALL):
        return f"{match[3]}: {match[2]}, in {match[1]}.yaml"
    if message.startswith("Config group override must be"):
        for argument in arguments:
            group, _, value = argument.partition("=")
            if group in GROUPS:
                return str(ConfigError(group, value, f"must be one of {', '.join(choices(group))}"))
    if message.startswith("Exceeds the limit") and (long := [each for each in arguments if _TOO_LONG.search(each)]):
        key, _, value = long[0].partition("=")
        return str(ConfigError(key, value, "has a number with more digits than Python accepts"))
    if isinstance(error, OSError) and error.errno in _FULL | _FORBIDDEN | _IN_THE_WAY:
        if error.filename == STDOUT:
            return f"cannot write {STDOUT}: {error.strerror}"
        place = "hydra.sweep.dir" if is_sweep(arguments) else "hydra.run.dir"
        what = from_here(error.filename) if error.filename else "the results"
        return f"cannot write {what}: {error.strerror}; choose another directory with {place}"
    if isinstance(error, (HydraException, OmegaConfBaseException, YAMLError)) or message.startswith(("Only one of", "The --")):
        return " ".join(message.partition("Config search path:")[0].split()) or type(error).__name__
    return None


def is_sweep(arguments: list[str]) -> bool:
    """Return whether the command line asks for a sweep."""
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments))


def from_here(path: str) -> Path:
    """Return ``path`` relative to the working directory if it lies below that, else absolute."""
    whole = Path(path).absolute()
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole
