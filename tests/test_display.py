"""What strangers' text could do to a user's terminal, log and shell; and streams that do not take any text."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_sweep import made_samples, write_point, write_sweep
from sweeps import Run

from gptsweep import review
from gptsweep.display import counted, get_logger, one_line, shown_text, visible
from gptsweep.errors import ModelError, SweepError

BAD = "\x1b]0;owned\x07\x1b]52;c;ZXZpbA==\x07\x9b2J\u200b\u202eabc\u2028\r\x08\U000e0041"
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
ROOT = Path(__file__).parents[1]


@given(st.text(st.characters(codec=None)))
def test_shown_text_moves_no_cursor_and_hides_nothing(text: str) -> None:
    assert not OBEYED.search(visible(text))
    assert one_line(text).isprintable() or not text.isprintable()
    assert "\n" not in one_line(text)
    visible(text).encode()


@pytest.mark.parametrize("text", ["naïve café", "日本語", "👩‍👩‍👧", "می‌خواهم", "a\tb\n", "C:\\new"])
def test_words_of_any_language_are_shown_as_they_are(text: str) -> None:
    assert visible(text) == text


def test_an_error_names_what_a_stranger_called_it_in_one_harmless_line() -> None:
    line = str(ModelError(f"model{BAD}", f"out{BAD}\n", f"holds {BAD}\nand more"))
    assert not OBEYED.search(line)
    assert "\n" not in line
    assert str(ModelError("start", "é\n", "no")) == r"start=é\n: no"


def test_a_log_line_is_harmless_whatever_handler_takes_it() -> None:
    logger, stream = get_logger("gptsweep.test"), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        logger.warning("left out: %s\n[forged] line", BAD)
        try:
            raise RuntimeError(f"in {BAD}")
        except RuntimeError:
            logger.exception("a bug")
    finally:
        logger.removeHandler(handler)
    assert not OBEYED.search(stream.getvalue())
    assert "\n[forged]" not in stream.getvalue()
    assert "RuntimeError: in " in stream.getvalue()


def test_every_module_logs_harmless_lines() -> None:
    plain = [path.name for path in (ROOT / "gptsweep").rglob("*.py") if "= logging.getLogger(" in path.read_text()]
    assert plain == ["display.py"]


def test_a_review_obeys_nothing_that_a_sweep_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / f"s{BAD}"
    for number, start in enumerate((BAD, f"other{BAD}\n")):
        samples = made_samples(temperature=0.5, top_k=5, seed=1, text=BAD, num_samples=2)
        write_point(root / f"p{number}{BAD}", samples, start=start, **{f"key{BAD}": f"{number}{BAD}"})
    with (root / f"p0{BAD}" / "samples.jsonl").open("a") as file:
        file.write("damaged\n")
    (root / "sweep.csv").write_text(f'directory,status,error,start\n"d{BAD}",failed,"because {BAD}",x\n', newline="")
    for arguments in (
        [],
        ["--diff", "0", "1"],
        ["--format", "csv"],
        ["--format", "json"],
        ["--sort", BAD],
        ["--diff", BAD, BAD],
    ):
        review.main([str(root), "--format", "table", *arguments])
        shown = "".join(capsys.readouterr())
        assert shown
        assert not OBEYED.search(shown), arguments


@pytest.mark.parametrize("encoding", ["ascii:strict", "cp1252:strict", "latin-1:strict"])
def test_a_review_is_readable_where_output_is_not_unicode(tmp_path: Path, encoding: str) -> None:
    root = write_sweep(tmp_path / "s", temperature=[0.5, 1.0], top_k=[5, 50], seed=[1])
    write_point(root / "one", made_samples(temperature=0.7, top_k=5, seed=1), start="café ☃")
    program = [
        sys.executable,
        "-m",
        "gptsweep.review",
        str(root),
        "--format",
        "table",
        "--no-report",
        "--best",
        "perplexity:min",
    ]
    ended = subprocess.run(program, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, check=True)
    text = ended.stdout.decode(encoding.partition(":")[0])
    assert "* " in text
    assert re.search(r"\d (\+-|±)\d", text)


@pytest.mark.parametrize(
    ("arguments", "redirections"),
    [
        ("-m gptsweep --help", ">&-"),
        ("-m gptsweep --help", "<&- >&- 2>&-"),
        ("-m gptsweep seed=x", "2>&-"),
        ("-m gptsweep.review nowhere", ">&- 2>&-"),
        ("-m gptsweep.review sweep --no-report", ">&-"),
        ("-m gptsweep.review sweep --no-report", ">/dev/full"),
        ("-m gptsweep --help", ">/dev/full"),
        ("-m gptsweep quiet=true sampling.num_samples=1 sampling.max_new_tokens=1", ">/dev/full"),
    ],
)
def test_a_closed_or_full_output_is_no_traceback(tmp_path: Path, arguments: str, redirections: str) -> None:
    if "sweep " in arguments:
        write_sweep(tmp_path / "sweep", temperature=[0.5], top_k=[5], seed=[1])
    command = f"{sys.executable} {arguments} {redirections}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    if "full" in redirections:
        assert "error: cannot write standard output: No space left on device" in ended.stderr
    assert ended.returncode == (2 if "=x" in arguments or "nowhere" in arguments or "full" in redirections else 0)


def test_lines_of_hydra_show_no_control_characters_of_a_setting(run: Run) -> None:
    small = ("sampling.num_samples=1", "sampling.max_new_tokens=1", "device=cpu", "name=x")
    for launcher in ("basic", "fused"):
        ended = run("-m", "start=a\u202eb\x1b]0;c\x07,d", f"hydra/launcher={launcher}", *small)
        logs = "".join(path.read_text() for path in Path("outputs/sweeps/x").glob("*/*.log"))
        assert not set("\u202e\x1b\x07") & set(ended.err + ended.out + logs)
        assert launcher == "fused" or "\\u202e" in ended.err


def test_one_of_a_thing_is_not_called_many() -> None:
    assert [counted(number, "sample") for number in (0, 1, 2, 1234)] == ["0 samples", "1 sample", "2 samples", "1,234 samples"]
    assert counted(1, "sample more", "samples more") == "1 sample more"
    assert str(SweepError([("a", ValueError())], 1, "night")) == "1 of 1 point failed"


def test_an_answer_does_not_run_into_the_users_turn() -> None:
    assert shown_text("Who are you?", "I am", chat_template=True) == "Who are you?\nI am"
    assert shown_text("Once", " upon", chat_template=False) == "Once upon"
