"""Prompts arrive exactly as they were written, or an error names the file and the line."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptsweep.errors import PromptError
from gptsweep.prompts import read_prompts
from gptsweep.records import Prompt


def user_error(start: str) -> str:
    with pytest.raises(PromptError) as caught:
        read_prompts(start)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("start=")
    return line


@pytest.mark.parametrize(
    "start", ["\n", "Once upon a time", "<|endoftext|>", "FILE", "file:a", "http://x", "NOTE: FILE:a", " FILE:a"]
)
def test_plain_text_is_one_prompt_unchanged(start: str) -> None:
    assert read_prompts(start) == (Prompt("0", start),)


@pytest.mark.parametrize(
    "data", [b"Once\n", b"a\r\nb\rc\n", b"  x  ", "naïve 日本\u2028".encode(), b"\xef\xbb\xbfx", b"\n", b"\x00"]
)
def test_a_file_is_the_prompt_that_nanogpt_reads(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(data)
    with open(path, encoding="utf-8") as file:
        assert read_prompts(f"FILE:{path}") == (Prompt("0", file.read()),)


def test_a_byte_order_mark_in_a_file_is_reported_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfOnce")
    read_prompts(f"FILE:{tmp_path}/prompt.txt")
    assert "byte order mark" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert read_prompts(f"LINES:{tmp_path}/prompt.txt") == (Prompt("0", "Once"),)
    assert not caplog.text


def test_each_line_is_a_prompt_and_keeps_its_spaces(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffOnce \r\n\n  \t\r\n  upon\u2028a\x0btime\nlast".encode())
    assert read_prompts(f"LINES:{path}") == (Prompt("0", "Once "), Prompt("1", "  upon\u2028a\x0btime"), Prompt("2", "last"))


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\n\ufeff", exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        min_size=1,
    )
)
def test_no_line_is_lost_or_split(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("lines") / "prompts.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(f"LINES:{path}")] == lines


def test_json_lines_give_prompts_with_ids(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "def f():\\n    ", "id": "HumanEval/0", "task": 1}\n\n{"prompt": "b"}\n'
        '{"id": 7, "prompt": "\\ud83d\\ude42"}\n{"id": null, "prompt": " "}'
    )
    assert read_prompts(f"JSONL:{path}") == (
        Prompt("HumanEval/0", "def f():\n    "),
        Prompt("1", "b"),
        Prompt("7", "🙂"),
        Prompt("3", " "),
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "b"', "line 2 is not JSON (Expecting ',' delimiter at column 15)"),
        ("b", "line 2 is not JSON"),
        ('{"prompt": ' + 5000 * "1" + "}", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('["b"]', "line 2 is not an object"),
        ('{"text": "b", "label": 1}', "line 2 has no field 'prompt'; its fields are 'text', 'label'"),
        ("{}", "its fields are none"),
        ('{"prompt": 3}', "line 2 has the prompt 3; it must be a string"),
        ('{"prompt": ""}', "line 2 has the prompt \"\"; it must be a string of at least one character"),
        ('{"prompt": "b", "id": 1.5}', "line 2 has the id 1.5"),
        ('{"prompt": "b", "id": true}', "line 2 has the id true"),
        ('{"prompt": "b", "id": ""}', "line 2 has the id"),
        ('{"prompt": "b", "id": "0"}', "line 2 has the id '0', like line 1; ids must differ"),
        ('{"prompt": "b", "id": 2}\n{"prompt": "c"}', "the id '2', like line 2 (lines without an id are numbered"),
    ],
)  # fmt: skip
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n' + line)
    assert says in user_error(f"JSONL:{path}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("blank").write_text("\n  \n")
    Path("latin1").write_bytes(b"one\ntwo\nth\xe9e\n")
    for kind in ("FILE", "LINES", "JSONL"):
        assert f"start={kind}:missing: no such file (looked in {tmp_path})" in user_error(f"{kind}:missing")
        assert "is a directory" in user_error(f"{kind}:.")
        assert "names no file" in user_error(f"{kind}:")
        assert "line 3 is not UTF-8 (byte 10 of the file)" in user_error(f"{kind}:latin1")
        assert "cannot be read" in user_error(f"{kind}:a\0b")
        assert "cannot be read: Could not determine home" in user_error(f"{kind}:~nobody-there/a")
        assert "cannot be read: File name too long" in user_error(f"{kind}:{'a' * 5000}")
    assert "the file is empty" in user_error("FILE:empty")
    for kind in ("LINES", "JSONL"):
        assert "every line is blank" in user_error(f"{kind}:empty")
        assert "every line is blank" in user_error(f"{kind}:blank")
    assert read_prompts("FILE:blank") == (Prompt("0", "\n  \n"),)


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompt.txt").write_text("Once")
    assert read_prompts("FILE:~/prompt.txt") == (Prompt("0", "Once"),)


def test_an_empty_prompt_is_refused() -> None:
    assert "is empty" in user_error("")
