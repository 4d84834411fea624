"""What a user sees while it runs: a bar that tells the truth, samples as they are, a log that is not flooded."""

from __future__ import annotations

import io
import logging
import os
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.file_proxy import FileProxy
from sweeps import Run

from gptsweep.errors import ResultsError
from gptsweep.run.meter import Meter
from gptsweep.run.progress import RULE, Progress, printable


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def interrupt_a_run_on(terminal: Terminal) -> None:
    def run() -> None:
        with Progress(stream=terminal, clock=Clock()) as progress:
            progress.update(rows_total=8, rows_done=3, rows_in_flight=5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()


@pytest.fixture(autouse=True)
def a_wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")


def test_the_speed_is_the_recent_one_and_loading_does_not_count():
    meter = Meter(started=0.0)
    meter.measure(30.0)  # a model was loaded; decoding begins
    for second in range(1, 61):
        meter.tokens += 100
        meter.measure(30.0 + second)
        assert meter.speed == pytest.approx(100)
    for second in range(1, 61):
        meter.tokens += 300
        meter.measure(90.0 + second)
    assert meter.speed == pytest.approx(300, rel=0.01)
    assert "(200 tokens/s)" in meter.summary(150.0)


@given(st.lists(st.tuples(st.floats(0.001, 30), st.floats(10, 1000)), min_size=1, max_size=30))
def test_the_speed_lies_between_the_slowest_and_the_fastest_stretch(stretches):
    meter, now, speeds = Meter(started=0.0), 0.0, []
    meter.measure(now)
    for seconds, speed in stretches:
        now += max(seconds, 0.3)
        before = meter.tokens
        meter.tokens += int(max(seconds, 0.3) * speed)
        speeds.append((meter.tokens - before) / max(seconds, 0.3))
        meter.measure(now)
    assert meter.speed is not None
    assert min(speeds) * 0.999 <= meter.speed <= max(speeds) * 1.001


def test_the_speed_of_tokens_that_are_reported_in_bursts_does_not_fall_to_nothing_between_them():
    meter = Meter(started=0.0)
    for second in range(41):
        meter.tokens = second // 10 * 1000
        meter.measure(float(second))
    assert meter.speed == pytest.approx(100)


def test_the_bar_moves_and_the_time_left_is_reported_before_any_row_is_finished():
    meter = Meter(started=0.0, rows_total=10, rows_in_flight=10, tokens_total=5000)
    meter.measure(0.0)
    meter.tokens = 1000
    meter.measure(10.0)
    assert meter.fraction == 0.2
    assert meter.line(10.0) == "0/10 rows, 10 in flight, 100 tokens/s, 0:00:40 left"


def test_the_time_left_survives_a_pause():
    """A minute in which a laptop slept, or a job was pending, made hours out of a minute that was left."""
    meter = Meter(started=0.0, rows_total=10, rows_in_flight=10, tokens_total=15000)
    meter.measure(0.0)
    now, lefts = 0.0, {}
    for second in range(121):
        meter.tokens += 1 if second == 60 else 100
        now += 60 if second == 60 else 1
        meter.measure(now)
        lefts[second] = meter.seconds_left(now), (meter.tokens_total - meter.tokens) / 100
    assert lefts[60][0] < 10 * lefts[60][1]
    assert lefts[120][0] == pytest.approx(lefts[120][1], rel=0.1)


@pytest.mark.parametrize("rows", [10, 180])
@pytest.mark.parametrize("prompt", [1, 200, 256], ids=lambda tokens: f"prompt of {tokens}")
def test_the_time_left_is_right_from_before_the_context_is_crossed_to_the_end(rows: int, prompt: int):
    """The embedded model's 500 tokens of a row, 256 of them in the context: a window takes as long as a hundred tokens."""
    token, window, steps, context = 1.5e-4, 1.5e-2, 500, 256
    inside = min(context - prompt + 1, steps)
    durations = [rows * (token if step < inside else window) for step in range(steps)]
    meter = Meter(started=0.0, rows_total=rows, rows_in_flight=rows, tokens_total=rows * steps)
    meter.expect_windows(0, rows * (steps - inside), window * 1.2)  # as measured on one window, alone
    now, total, before = 0.0, sum(durations), None
    meter.measure(now)
    for step, seconds in enumerate(durations, 1):
        now += seconds
        meter.expect_windows(rows * max(step - inside, 0), rows * (steps - inside), window * 1.2)
        meter.tokens = rows * step
        meter.measure(now)
        left = meter.seconds_left(now)
        if left is None:
            assert now < 0.5
            continue
        assert left == pytest.approx(total - now, rel=0.25, abs=1)
        assert now < 0.5 or meter.fraction == pytest.approx(now / total, abs=0.05)
        assert before is None or abs(before - left) < seconds + 0.2 * total, "it does not jump"
        before = left


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(1e-3, 1.0), st.floats(0, 300), st.floats(0.2, 1)), min_size=2, max_size=5)
)
def test_the_time_left_of_a_sweep_over_models_is_that_of_the_models_seen_so_far(models):
    """For each model: its steps of 20 tokens, seconds a token, seconds to load, and which share of its tokens was expected."""
    meter, now, seen = Meter(started=0.0), 0.0, []
    expected = [round(20 * steps * share) for steps, _, _, share in models]
    for number, (steps, seconds, loading, _) in enumerate(models):
        now += loading
        meter.begin_model()
        seen.append(seconds)
        meter.tokens_ahead = sum(expected[number + 1 :])
        meter.tokens_total = meter.tokens + 20 * steps + meter.tokens_ahead
        meter.measure(now)
        for _ in range(steps):
            meter.tokens += 20
            now += 20 * seconds
            meter.measure(now)
            left = meter.seconds_left(now)
            tokens = meter.tokens_total - meter.tokens
            assert left is None or min(seen) * tokens <= left * 1.001 + 1e-6, "no less than at the fastest"
            assert left is None or left <= max(seen) * tokens * 1.001 + 1e-6, "no more than at the slowest, loading apart"
            assert 0 <= meter.fraction <= 1
    assert meter.seconds_left(now) in (None, 0)


def test_windows_that_nobody_measured_beforehand_are_learnt_on_the_way():
    meter = Meter(started=0.0, rows_total=2, tokens_total=200)
    meter.measure(0.0)
    meter.expect_windows(0, 20, None)
    meter.tokens = 100
    meter.measure(1.0)
    assert meter.seconds_left(1.0) == pytest.approx(1)
    meter.expect_windows(10, 20, None)
    meter.tokens = 190
    meter.measure(6.0)
    assert meter.seconds_left(6.0) == pytest.approx(4.2, rel=0.01)


def test_rows_tell_the_time_left_where_the_tokens_to_come_are_not_known():
    meter = Meter(started=0.0, rows_total=10, rows_done=4, points_done=1, points_total=5)
    assert meter.fraction == 0.4
    assert meter.line(8.0) == "4/10 rows, 0 in flight, 1/5 points, 0:00:12 left"


@pytest.mark.parametrize("force", ["", "1"])
def test_a_pipe_gets_nothing_but_log_lines_whatever_force_color_says(monkeypatch, caplog, force):
    monkeypatch.setenv("FORCE_COLOR", force)
    caplog.set_level(logging.INFO)
    pipe, clock = io.StringIO(), Clock()
    with Progress(stream=pipe, clock=clock) as progress:
        for second in range(3600):
            clock.now += 1
            progress.update(rows_total=3600, rows_done=second + 1, tokens=100 * second)
            progress.show_sample("text", (0, 0), "sample 0")
    assert pipe.getvalue() == ""
    assert 10 <= len(caplog.messages) <= 50, "an hour is neither silent nor a flood"
    assert caplog.messages[0].startswith("10/3,600 rows, 0 in flight, 100 tokens/s, ")
    assert caplog.messages[-1].startswith("done: 3,600/3,600 rows, 359,900 tokens in 1:00:00")


def test_a_short_run_logs_one_line(caplog):
    caplog.set_level(logging.INFO)
    with Progress(stream=io.StringIO()) as progress:
        progress.update(rows_total=8, rows_done=8, tokens=64)
    assert len(caplog.messages) == 1


def test_a_run_that_fails_does_not_say_done(caplog):
    caplog.set_level(logging.INFO)
    interrupt_a_run_on(Terminal())
    assert caplog.messages == ["stopped: 3/8 rows, 0 tokens in 0:00:00"]


def test_the_terminal_is_given_back_without_a_trace_of_the_bar():
    terminal = Terminal()
    stdout = sys.stdout
    interrupt_a_run_on(terminal)
    shown = terminal.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is back"
    assert "3/8 rows, 5 in flight" in shown
    assert shown.endswith("\x1b[1A\x1b[2K"), "and the bar's line is erased"
    assert sys.stdout is stdout


def test_samples_are_shown_as_sample_py_shows_them_and_as_they_are():
    terminal = Terminal()
    with Progress(stream=terminal) as progress:
        progress.update(rows_total=2)
        progress.show_sample("[bold]first[/bold] :smile: [/]\n\tsecond é 中\n", (0, 0), "sample 0")
        progress.show_sample("long " * 100, (0, 0), "sample 0")
    shown = terminal.getvalue()
    assert f"[bold]first[/bold] :smile: [/]\n        second é 中\n\n{RULE}\n" in shown
    assert f"{'long ' * 100}\n{RULE}\n" in shown, "the text is not wrapped by us"


def test_each_sample_on_a_terminal_says_what_it_is_a_sample_of():
    terminal = Terminal()
    with Progress(stream=terminal) as progress:
        progress.show_sample("text", (2, 7), "seed=1: prompt 2, sample 7")
    assert re.search(r"seed=1: prompt 2, sample 7\S*\ntext\n", terminal.getvalue())


def test_a_pipe_gets_the_samples_of_a_run_in_their_order_as_sample_py_writes_them(capsys):
    texts = {(prompt, sample): f"text {prompt} {sample}\x1b\r" for prompt in (0, 1) for sample in (0, 1, 2)}
    with Progress(samples_each=3) as progress:
        for place in [(0, 1), (1, 0), (0, 0), (0, 2)]:
            progress.show_sample(texts[place], place, "label")
        early = capsys.readouterr().out
        stored = [(place, text, "label") for place, text in texts.items()]
        progress.write_rest([*stored, ((1, 3), "of an earlier run with more samples", "label")])
    wanted = [f"{text}\n{RULE}\n" for text in texts.values()]
    assert early == "".join(wanted[:4])
    assert capsys.readouterr().out == "".join(wanted[4:])


def test_a_run_that_is_finished_shows_its_samples_on_a_terminal_again_and_none_twice(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with Progress(samples_each=2) as progress:
        progress.show_sample("fresh", (0, 1), "sample 1")
        progress.write_rest([((0, 0), "kept", "sample 0"), ((0, 1), "fresh", "sample 1"), ((0, 2), "more", "sample 2")])
    shown = terminal.getvalue()
    assert (shown.count("kept\n"), shown.count("fresh\n"), shown.count("more\n")) == (1, 1, 0)
    assert re.search(r"sample 0\S*\nkept", shown)


def test_a_reader_that_has_seen_enough_does_not_end_a_run_in_the_middle_of_a_step(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, Progress(samples_each=1) as progress:
        monkeypatch.setattr(sys, "stdout", pipe)
        progress.show_sample("text", (0, 0), "sample 0")
        assert isinstance(progress.refusal, BrokenPipeError)
        progress.write_rest([((0, 0), "text", "label")])


def test_a_full_disk_behind_standard_output_is_reported_once_the_run_is_complete(monkeypatch):
    with open("/dev/full", "w") as full, Progress(samples_each=1) as progress:
        monkeypatch.setattr(sys, "stdout", full)
        progress.show_sample("text", (0, 0), "sample 0")
        with pytest.raises(ResultsError, match="No space left on device; the results of the run are complete"):
            progress.write_rest([((0, 0), "text", "label")])


def test_quiet_shows_no_samples_but_the_bar():
    terminal = Terminal()
    with Progress(quiet=True, stream=terminal) as progress:
        progress.update(rows_total=2, rows_done=1)
        progress.show_sample("secret", (0, 0), "sample 0")
    assert "secret" not in terminal.getvalue()
    assert "1/2 rows" in terminal.getvalue()


def test_generated_escape_sequences_do_nothing_to_the_terminal():
    terminal = Terminal()
    evil = "\x1b[2J\x1b]0;title\x07 \x9b31m \x08\x08 \r \u202eabc \x00 \ud800"
    with Progress(stream=terminal) as progress:
        before = terminal.getvalue()
        progress.show_sample(evil, (0, 0), "sample 0")
        shown = terminal.getvalue()[len(before) :]
    assert r"\x1b[2J\x1b]0;title\x07 \x9b31m \x08\x08 \r \u202eabc \x00 \ud800" in shown
    assert "\x1b[2J" not in shown


@given(st.text(st.characters(codec=None)), st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252"]))
def test_printable_text_can_be_printed_and_plain_text_is_left_alone(text, encoding):
    shown = printable(text, encoding)
    shown.encode(encoding)
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in shown)
    if text.isascii() and text.isprintable():
        assert shown == text


def test_a_terminal_that_is_not_unicode_does_not_end_the_run():
    class Narrow(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    raw = io.BytesIO()
    with Progress(stream=Narrow(raw, encoding="ascii", write_through=True)) as progress:
        progress.update(rows_total=2, rows_done=1)
        progress.show_sample("café ☃", (0, 0), "sample 0")
    assert rb"caf\xe9 \u2603" in raw.getvalue()


def test_a_dumb_terminal_gets_samples_and_log_lines_but_no_bar(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with Progress(stream=terminal) as progress:
        progress.update(rows_total=2, rows_done=1)
        progress.show_sample("text", (0, 0), "sample 0")
    assert terminal.getvalue() == f"sample 0\ntext\n{RULE}\n"


def test_log_lines_go_above_the_bar_and_handlers_get_their_stream_back():
    terminal = Terminal()
    handler = logging.StreamHandler(terminal)
    logger = logging.getLogger("test_progress.someone")
    logger.addHandler(handler)
    try:
        for _ in range(2):
            with Progress(stream=terminal) as progress:
                progress.update(rows_total=2, rows_done=1)
                assert isinstance(handler.stream, FileProxy)
                # What Hydra makes for a job that starts under the bar.
                late = logging.StreamHandler(handler.stream)
                logger.addHandler(late)
                logger.warning("[red]watch out[/red]")
            assert handler.stream is terminal
            assert late.stream is terminal
            logger.removeHandler(late)
    finally:
        logger.removeHandler(handler)
    assert terminal.getvalue().count("\x1b[2K[red]watch out[/red]\n") == 4, "in place of the bar, which follows below"


def test_what_goes_to_a_file_still_does_while_there_is_a_bar(monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    terminal = Terminal()
    with Progress(stream=terminal):
        print("a warning", file=sys.stderr)
    assert errors.getvalue() == "a warning\n"


def test_a_sweep_shows_a_line_of_text_a_few_times_a_second():
    terminal, clock = Terminal(), Clock()
    with Progress(quiet=True, live_text=True, stream=terminal, clock=clock) as progress:
        due = 0
        for step in range(100):
            clock.now += 0.01
            if progress.text_due:
                due += 1
                progress.show_text(f"ROMEO:\x1b]0;owned\x07\nstep {step}")
        assert 3 <= due <= 5
    assert r"ROMEO:\x1b]0;owned\x07\nstep" in terminal.getvalue()
    with Progress(live_text=True, stream=io.StringIO()) as progress:
        assert not progress.text_due


@pytest.mark.parametrize(
    ("columns", "workers", "shown"),
    [
        (60, "", "3/8 rows, 2,000 tokens/s, 0:00:05 left"),
        (40, "", "3/8 rows, 0:00:05 left"),
        (
            140,
            "2 workers (1 restarted) of 999 + 1,001 tokens/s",
            "0:00:05 left, 2 workers (1 restarted) of 999 + 1,001 tokens/s",
        ),
        (80, "2 workers (1 restarted) of 999 + 1,001 tokens/s", "2,000 tokens/s, 0:00:05 left, 2 workers (1 restarted)"),
        (60, "2 workers (1 restarted) of 999 + 1,001 tokens/s", "3/8 rows, 0:00:05 left, 2 workers (1 restarted)"),
        (50, "2 workers (1 restarted) of 999 + 1,001 tokens/s", "3/8 rows, 0:00:05 left, 2 workers"),
        (40, "2 workers (1 restarted) of 999 + 1,001 tokens/s", "3/8 rows, 0:00:05 left"),
    ],
)
def test_a_narrow_terminal_has_fewer_counts_beside_the_bar_but_whole_ones(monkeypatch, columns, workers, shown):
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal, clock = Terminal(), Clock()
    with Progress(stream=terminal, clock=clock) as progress:
        progress.show_workers(workers)
        progress.update(rows_done=3, rows_total=8, rows_in_flight=5, points_total=4, tokens=0, tokens_total=12_000)
        clock.now += 1
        progress.update(tokens=2_000)
    assert shown in terminal.getvalue()
    assert "…" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (2, ("model=resume", "model.out_dir=nowhere")),
        (2, ("start=FILE:nowhere",)),
        (2, ("start=é",)),
        (2, ("sampling.logit_bias={999:1}",)),
        (2, ("device.name=cuda:99",)),
        (2, ("model=hf", "model.path=./nowhere")),
        (2, ("-m", "seed=1,2", "model=resume", "model.out_dir=nowhere")),
        (1, ("-m", "seed=1,2", "start=é")),
        (2, ("-m", "seed=1,2", "start=é", "hydra/launcher=basic")),
    ],
)
def test_an_error_before_the_first_row_stands_alone(run: Run, status: int, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments, "name=x")
    assert ended.status == status
    assert "0/0" not in ended.err
    assert "done:" not in ended.err
    assert "stopped:" not in ended.err


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_run_goes_on_when_its_terminal_is_closed() -> None:
    master, slave = os.openpty()
    with open(slave, "w", encoding="utf-8") as terminal, Progress(stream=terminal) as progress:
        progress.update(rows_done=1, rows_total=3)
        os.close(master)
        progress.show_sample("ROMEO", (0, 0), "sample 1")
        progress.update(rows_done=2)
    assert progress.refusal is None
