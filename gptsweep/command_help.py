"""The text of ``--help``, and shell completion."""

from __future__ import annotations

import os
import re

from .config_schema import CONF_DIR, GROUPS, choices, keys

HELP = r"""gptsweep samples from GPT models: one run, or a sweep of settings in one batched pass.

Usage:
  python -m gptsweep [key=value ...]           one run, into outputs/runs/<name>/
  python -m gptsweep -m [key=value,value ...]  a sweep, into outputs/sweeps/<name>/
  python -m gptsweep.plan -m [key=value ...]   what a sweep would take: rows, time, memory, disk
  python -m gptsweep.review <directory>        the results, seen at a glance

Examples:
  python -m gptsweep                           the embedded model, no network
  python -m gptsweep model=gpt2 start="Once upon a time" sampling.temperature=0.9
  python -m gptsweep model=resume model.out_dir=out-shakespeare-char start=FILE:prompt.txt
  python -m gptsweep -m model=nanochat model.out_dir=base_checkpoints/d12 'model.step=glob(*)'   all steps
  python -m gptsweep experiment=batch          many prompts from a file
  python -m gptsweep -m name=night sampling.max_new_tokens=200 sampling.top_k=5,null seed=1,2
  python -m gptsweep -m name=night sampling.max_new_tokens=200 sampling.top_k=5,null seed=1,2,3   the rest
  python -m gptsweep -m hydra/sweeper=points hydra.sweeper.file=points.csv sampling.max_new_tokens=200
  python -m gptsweep -m hydra/sweeper=random sampling.max_new_tokens=200 'sampling.min_p=interval(0.01,0.3)'

{groups}

Settings, with their defaults:
{settings}

Quote what the shell would read: 'sampling.stop=["\n\n"]'. In start and sampling.stop, \n is a newline.

More:
  --cfg job        the config that the same line would run with
  --version        the version
  --info           where the config comes from
  --config-dir X   a directory with choices of your own
  --hydra-help     Hydra's flags, launchers and sweepers
  eval "$(python -m gptsweep -sc install=bash)"    completion with the Tab key
"""

BASH_COMPLETION = r"""_gptsweep_completion() {
    local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[0]}"
    if [[ $command == *python* ]]; then
        [[ ${COMP_WORDS[1]} == -m && ${COMP_WORDS[2]} == gptsweep ]] || return
        command="$command -m gptsweep"
    fi
    COMPREPLY=($(compgen -W "$(COMP_LINE="$COMP_LINE" $command -sc query=bash 2> /dev/null)" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _gptsweep_completion gptsweep python python3"""


def help_text() -> str:
    """The overview; choices, keys, defaults and notes are read from ``conf/``.

    Hydra's own help composes the config and copies it for each of its groups, which takes 0.4 s longer.
    """
    groups: list[str] = []
    settings: dict[str, str] = {}
    for group in GROUPS:
        groups.append(f"{group}=")
        for choice in choices(group):
            note = re.search(r"^# (?!@)(.*)", read_conf(f"{group}/{choice}"), re.MULTILINE)
            groups.append(f"  {choice:14} {note[1] if note else ''}".rstrip())
    for file in ("config", "model/resume", "model/hf", "model/nanochat", "device/auto", "sampling/default"):
        prefix = f"{file.partition('/')[0]}." if "/" in file else ""
        for line in read_conf(file).splitlines():
            match = re.fullmatch(r"(\w+): (\[.*?\]|\S+)(?: # (.*))?", line)
            if match and (key := prefix + match[1]) in keys() and key != "model.name":
                settings.setdefault(key, f"  {f'{key}={match[2]}':35} {match[3] or ''}".rstrip())
    return HELP.format(groups="\n".join(groups), settings="\n".join(settings.values()))


def read_conf(name: str) -> str:
    """The text of ``conf/<name>.yaml``."""
    return (CONF_DIR / f"{name}.yaml").read_text(encoding="utf-8")


def complete(arguments: list[str]) -> bool:
    """Answer a shell's completion request; False if Hydra should answer it.

    Hydra knows ``python script.py`` and console scripts, but not ``python -m gptsweep``.
    """
    if "install=bash" in arguments:
        print(BASH_COMPLETION)
        return True
    if "uninstall=bash" in arguments:
        print("complete -r gptsweep python python3; unset -f _gptsweep_completion")
        return True
    os.environ["COMP_LINE"] = re.sub(r"^.*?\s-m\s+gptsweep\b", "gptsweep", os.environ.get("COMP_LINE", ""))
    return False
