"""Fuzz the syntax of ``start``: what is typed is what is sampled, or an error says what to type, and that works.

python tests/fuzz/fuzz_start.py --seconds 600
"""

from __future__ import annotations

import argparse
import re
import shlex
import time
from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gptsweep.config import point_from_config
from gptsweep.config_schema import CONF_DIR, register
from gptsweep.errors import ConfigError
from gptsweep.multirun.compose import PointLoader
from gptsweep.multirun.overrides import as_typed, how_to_quote
from gptsweep.prompts import unescaped_start

GRAMMAR = [*"'\"\\,()[]{}:=$ \t\n+-._0123456789eE/*@?|%#<>!~&;^`", "null", "true", "False", "nan", "inf", "1e3", "1_000"]
CALLS = ["str(", "choice(", "range(", "sort(", "tag(", "glob(", "int(", "extend_list(", "FILE:", "${", "\\${", "\\n", "\\\\"]
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.lists(st.sampled_from(GRAMMAR + CALLS + list("abHi")) | CHARACTERS, max_size=12).map("".join)
PLAIN = TEXTS.map(lambda text: re.sub(r"[,()\[\]{}'\"\\:=\s]", "", text)).filter(bool)


class Sampled:
    """What arguments are sampled as."""

    def __init__(self) -> None:
        register()
        hydra = Hydra.create_main_hydra2("gptsweep", create_config_search_path(str(CONF_DIR)))
        GlobalHydra.instance().clear()
        self._master = hydra.compose_config("config", [], RunMode.MULTIRUN, with_log_configuration=False)
        self._loader = PointLoader(hydra.config_loader)

    def __call__(self, argument: str, *, sweeping: bool = False) -> list[str]:
        """The prompts of ``start=…``, typed in a run or in a sweep.

        Raises:
            ConfigError: of the value.
            OverrideParseException: Hydra cannot read it.
        """
        overrides = OverridesParser.create().parse_overrides([as_typed(argument, sweeping=sweeping)])
        if not sweeping:
            assert not overrides[0].is_sweep_override()
        lines = BasicSweeper.split_arguments(overrides, None)[0]
        return [point_from_config(self._loader.load_sweep_config(self._master, line)).start for line in lines]


def check_run(sampled: Sampled, text: str) -> None:
    """In one run, ``start=text`` is sampled as typed, or refused with what to type."""
    if re.search(r"(?<!\\)(\\\\)*\$\{", text) or text == "???":
        return  # an interpolation, and Hydra's mark of a missing value
    try:
        assert sampled(f"start={text}") == [unescaped_start(text)] or is_needed_quoting(sampled, text) or "\\${" in text
    except ConfigError as refused:
        how = re.fullmatch(r".*?; type (.*) for the text inside them, or (.*) to keep them", refused.wanted, re.DOTALL)
        (bare,), (whole,) = (shlex.split(how[number]) for number in (1, 2)) if how else ([text], [text])
        assert sampled(whole) == [unescaped_start(text)]
        assert sampled(bare) == [unescaped_start(text[1:-1])]


def is_needed_quoting(sampled: Sampled, text: str) -> bool:
    """Whether ``text`` is a string in quotes, and sampled as what is in them, which Hydra would not read without."""
    if text[:1] not in ("'", '"') or text[:1] != text[-1:]:
        return False
    quote = Quote.single if text[0] == "'" else Quote.double
    (found,) = sampled(f"start={text}")
    inside = [re.sub(r"(\\+)(?=['\"]|$)", lambda match: match[1][: len(match[1]) // 2], text[1:-1])]
    inside += [re.sub(rf"(\\+)(?={text[0]}|$)", lambda match: match[1][: len(match[1]) // 2], text[1:-1])]
    return found in map(unescaped_start, inside) or QuotedString(found, quote).with_quotes() == text


def check_sweep(sampled: Sampled, texts: Sequence[str], quote: bool) -> None:
    """In a sweep, plain texts between commas, and any texts in quotes, are sampled as typed."""
    if any("$" in text or text == "???" for text in texts):
        return
    words = [QuotedString(text, Quote.double).with_quotes() for text in texts] if quote else list(texts)
    try:
        found = sampled(f"start={','.join(words)}", sweeping=True)
    except OverrideParseException as error:
        assert not quote
        line = how_to_quote("start", error.override.partition("=")[2])
        if "start=FILE:" not in line:
            (typed,) = shlex.split(line.partition(": ")[2])
            assert sampled(typed, sweeping=True) == [unescaped_start(",".join(texts))]
        return
    assert found == [unescaped_start(text) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    until = time.monotonic() + parser.parse_args().seconds
    sampled = Sampled()
    tried = 0

    phases = (Phase.generate, Phase.shrink)

    @settings(max_examples=2_000, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(TEXTS, st.lists(PLAIN, min_size=1, max_size=4, unique=True), st.lists(TEXTS, min_size=1, max_size=3))
    def once(text: str, texts: list[str], quoted: list[str]) -> None:
        nonlocal tried
        tried += 1
        if time.monotonic() < until:
            check_run(sampled, text)
            check_sweep(sampled, texts, quote=False)
            check_sweep(sampled, quoted, quote=True)

    while time.monotonic() < until:
        once()
    print(f"{tried:,} inputs, nothing found")


if __name__ == "__main__":
    main()
