"""What a user would lose: prompts that reach a Hugging Face model as the tokens it was trained on."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import damage

from gptsweep.errors import ModelError
from gptsweep.models.files.byte_pairs import Added, BytePairTokenizer
from gptsweep.models.files.generated_text import completion_text
from gptsweep.models.files.hf_tokenizer import read_hf_tokenizer
from gptsweep.models.files.tokenizers import GPT2Tokenizer, Tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
END = "<|endoftext|>"
FLAGS: dict[str, dict[str, bool]] = {
    "<mask>": {"lstrip": True},
    "<tail>": {"rstrip": True},
    "word": {"single_word": True},
    "<both>": {"lstrip": True, "rstrip": True, "normalized": True},
    "<|user|>": {},
    "<|user|>x": {"normalized": True},
}
TEXTS = [
    "def forward(self, x):\n    return x",
    "  two  spaces ",
    "naïve 🙂 日本語\t\n",
    f"{END}it's <mask> , <mask>\n\t<mask>",
    "<tail>  then<tail>\n x <tail>",
    "word sword words word, _word word",
    " <both>  <both><mask> <tail> end",
    "<|user|>x hi<|user|> x<|user|>x",
    "",
    " ",
]


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """A small tokenizer.json, its end of text at 0 and its added tokens after the vocabulary."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    lines = (REPOSITORY / "gptsweep/models/gpt2.py").read_text(encoding="utf-8").split("\n")
    tokenizer.train_from_iterator(lines, vocab_size=400, special_tokens=[END], show_progress=False)
    added = [tokenizers.AddedToken(text, special=True, **({"normalized": False} | flags)) for text, flags in FLAGS.items()]
    tokenizer._tokenizer.add_tokens(added)
    contents: dict[str, Any] = json.loads(tokenizer._tokenizer.to_str())
    return contents


def template(*front: str, behind: tuple[str, ...] = ()) -> dict[str, Any]:
    """A post_processor that puts special tokens around a text."""
    special = [{"SpecialToken": {"id": text, "type_id": 0}} for text in (*front, *behind)]
    single = [*special[: len(front)], {"Sequence": {"id": "A", "type_id": 0}}, *special[len(front) :]]
    ids = {text: {"id": text, "ids": [0], "tokens": [text]} for text in (*front, *behind)}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": ids}


def write(directory: Path, contents: dict[str, Any], config: dict[str, Any] | None = None) -> Path:
    """``tokenizer.json``, with a ``tokenizer_config.json`` beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    (directory / "tokenizer.json").write_text(json.dumps(contents))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": END, "eos_token": END} | (config or {})))
    return directory


def write_files(directory: Path, contents: dict[str, Any], config: dict[str, Any]) -> Path:
    """The same as ``vocab.json`` and ``merges.txt``, its added tokens in ``tokenizer_config.json``."""
    write(directory, contents)
    (directory / "tokenizer.json").unlink()
    model = contents["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in contents["added_tokens"]}
    more = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder, "bos_token": END, "eos_token": END}
    (directory / "tokenizer_config.json").write_text(json.dumps(more | config))
    return directory


def ours(directory: Path, limit: int = 500) -> Tokenizer:
    def find(name: str) -> Path | None:
        return path if (path := directory / name).is_file() else None

    found = read_hf_tokenizer(find, config={"eos_token_id": 0}, limit=limit, key="model.path", value="here")
    assert found is not None
    return found


def theirs(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


def assert_same_tokens(directory: Path, texts: list[str]) -> None:
    tokenizer, expected = ours(directory), theirs(directory)
    for text in texts:
        ids = expected(text)["input_ids"]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == expected.decode(ids, clean_up_tokenization_spaces=False), text
    assert all(tokenizer.decode([number]) == text for text, number in expected.get_added_vocab().items())
    assert tokenizer.vocab_size == len(expected)


@pytest.mark.parametrize("front", [(), (END,), (END, END)], ids=len)
def test_prompts_become_the_tokens_of_transformers(tmp_path: Path, trained: dict[str, Any], front: tuple[str, ...]) -> None:
    """With added tokens that take white space or whole words, a beginning of text, and a space put before it."""
    for config, in_json in itertools.product([{}, {"add_prefix_space": True}, {"add_prefix_space": False}], [False, True]):
        for kind in ("GPT2Tokenizer", "PreTrainedTokenizerFast"):
            if in_json and not config and kind == "GPT2Tokenizer":
                continue  # transformers takes its own default there; tokenizer.json says what the model was trained with
            contents = copy.deepcopy(trained)
            contents["pre_tokenizer"]["add_prefix_space"] = in_json
            if front:
                contents["post_processor"] = template(*front)
            assert_same_tokens(write(tmp_path, contents, config | {"tokenizer_class": kind}), TEXTS)


PIECES = st.sampled_from([*FLAGS, END, " ", "  ", "\n", "a", "é", "🙂", "self", "1", "'s", "_"])


@settings(max_examples=60)
@given(text=st.lists(PIECES, max_size=12).map("".join))
def test_any_text_becomes_the_tokens_of_transformers(both: tuple[Tokenizer, Any], text: str) -> None:
    tokenizer, expected = both
    assert tokenizer.encode(text) == expected(text)["input_ids"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, trained: dict[str, Any]) -> tuple[Tokenizer, Any]:
    directory = write(tmp_path_factory.mktemp("both"), trained | {"post_processor": template(END)})
    return ours(directory), theirs(directory)


def test_vocab_json_and_merges_txt_give_the_tokens_of_transformers(tmp_path: Path, trained: dict[str, Any]) -> None:
    for config in ({}, {"add_prefix_space": True}, {"add_bos_token": True}):
        assert_same_tokens(write_files(tmp_path, trained, config), TEXTS)


def test_added_tokens_may_stand_in_the_vocabulary_as_they_are_written(tmp_path: Path, trained: dict[str, Any]) -> None:
    contents = copy.deepcopy(trained)
    number = len(trained["model"]["vocab"]) + len(FLAGS)
    contents["added_tokens"].append(trained["added_tokens"][0] | {"id": number, "content": "<日本 >"})
    contents["model"]["vocab"] |= {token["content"]: token["id"] for token in contents["added_tokens"]}
    assert_same_tokens(write(tmp_path, contents), [*TEXTS, "a<日本 >b日本"])


def test_a_beginning_of_text_is_put_in_front_wherever_the_files_ask_for_it(tmp_path: Path, trained: dict[str, Any]) -> None:
    plain = ours(write(tmp_path, trained))
    cls = {"sep": [END, 0], "cls": [END, 0], "trim_offsets": True, "add_prefix_space": False}
    asking: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"post_processor": template(END)}, {}),
        ({"post_processor": template(END)}, {"add_bos_token": True}),
        ({"post_processor": {"type": "Sequence", "processors": [trained["post_processor"], template(END)]}}, {}),
        ({"post_processor": cls | {"type": "RobertaProcessing"}}, {}),
        ({}, {"add_bos_token": True}),
        ({}, {"add_bos_token": True, "bos_token": {"content": END}}),
        ({"post_processor": template(END, behind=(END,))}, {}),  # what ends a text has no place before its continuation
    ]
    for contents, config in asking:
        tokenizer = ours(write(tmp_path, trained | contents, config))
        assert tokenizer.encode("self") == [0, *plain.encode("self")]
        assert tokenizer.fingerprint != plain.fingerprint
    nothing = ours(write(tmp_path, trained, {"add_bos_token": True, "bos_token": None}))
    assert nothing.encode("self") == plain.encode("self") == theirs(tmp_path)("self")["input_ids"]
    with pytest.raises(ModelError, match="its bos_token '<s>' is not in the vocabulary"):
        ours(write(tmp_path, trained, {"add_bos_token": True, "bos_token": "<s>"}))
    wrong = template(END)
    wrong["special_tokens"][END]["ids"] = [77777]
    write(tmp_path, trained | {"post_processor": wrong})
    with pytest.raises(ModelError, match="puts the token 77777 before each text"):
        ours(tmp_path)


def test_points_of_models_that_were_read_before_keep_their_ids() -> None:
    """Fingerprints of version 0.1: they are part of every point_id."""
    tokenizer = BytePairTokenizer({b"a": 0, b"b": 1, b"ab": 2}, [(b"a", b"b")], {"c": Added(3)}, 3, True)
    assert tokenizer.fingerprint == "9023ddf9048aeb68405ea1082c16a7b1abc0273ee070b158fcc919f39e64b7ea"
    assert GPT2Tokenizer().fingerprint == "1b6be940fff2177580f88ea90fcb19b50c738ee444332960c53da55ddd6c71f7"


def test_a_long_word_is_merged_at_once(trained: dict[str, Any], tmp_path: Path) -> None:
    """In time that grows as its length does; with the square of it this took hours."""
    tokenizer = ours(write(tmp_path, trained))
    assert tokenizer.decode(tokenizer.encode("self" * 50_000)) == "self" * 50_000


def test_text_cut_anywhere_is_whole_again(tmp_path: Path, trained: dict[str, Any]) -> None:
    tokenizer = ours(write(tmp_path, trained))
    ids = tokenizer.encode("🙂 <mask> 日本語 naïve")
    assert len(ids) > len("🙂 <mask> 日本語 naïve") - len("<mask>")  # characters are cut into several tokens
    assert completion_text(tokenizer, ids, (), None) == "🙂<mask> 日本語 naïve"
    assert completion_text(tokenizer, ids, ("語",), None) == "🙂<mask> 日本"


# --- files from strangers -------------------------------------------------------------------------------------------------


STRANGE = st.sampled_from(
    [None, True, -1, 0, 1.5, 2**31, 2**32, 2**64, 10**400, "", "a", "\ud800", "\x00", "(a+)+$", [], [[]], [0, 0], {}, {"a": 0}]
    + [{"type": kind} for kind in ("ByteLevel", "Sequence", "TemplateProcessing", "Unigram", "BPE", "Replace")]
)


@settings(max_examples=100)
@given(data=st.data())
def test_a_damaged_tokenizer_json_is_one_clear_line(
    data: st.DataObject, trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    contents = copy.deepcopy(trained | {"post_processor": template(END)})
    contents["model"] |= {"merges": contents["model"]["merges"][:40]}
    damage(contents, data, STRANGE, 3)
    directory = write(tmp_path_factory.mktemp("damaged"), contents)
    try:
        tokenizer = ours(directory)
    except ModelError as error:
        message = str(error)
    else:
        message = "model.path=here: "
        assert all(0 <= token < tokenizer.vocab_size <= 500 for token in tokenizer.encode("self.x <mask> word\n"))
    assert message.startswith("model.path=here: ")
    assert "\n" not in message


def test_a_hostile_tokenizer_json_neither_pads_nor_truncates_nor_runs_its_expressions(
    tmp_path: Path, trained: dict[str, Any]
) -> None:
    plain = ours(write(tmp_path, trained)).encode("self" * 50)
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    hostile = trained | {"padding": padding | {"pad_token": END}, "truncation": truncation}
    assert ours(write(tmp_path, hostile)).encode("self" * 50) == plain
    slow = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    for part in ({"pre_tokenizer": slow}, {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}}):
        with pytest.raises(ModelError, match=r"its tokenizer\.json has (pre_tokenizer|normalizer)\.type="):
            ours(write(tmp_path, trained | part))
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"its tokenizer\.json cannot be read"):
        ours(tmp_path)
