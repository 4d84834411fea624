"""What a user would lose: the turn that an instruction-tuned model was trained to answer, and safety from whoever wrote it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from model_files import save_llama
from tokenizer_kinds import MIXED, files_of, ours, theirs, write

import gptsweep
from gptsweep.errors import ConfigError, ModelError, PromptError
from gptsweep.models.files.hf_text import HFTokenizer
from gptsweep.models.files.tokenizers import CharTokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITH_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{- tools | tojson(indent=2) }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(open=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" and message.content is string and not(message.content.startswith('<tool>')) %}
        {%- set ns.open = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role in ['user', 'system'] and loop.index0 >= ns.last %}
        {{- '<|im_start|>' + message.role + '\\n' + content.split('</think>')[-1].lstrip('\\n') ~ '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%Y") %}{%- endif %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ '<|assistant|>
'  + message['content'] + eos_token }}{% endgeneration %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{% generation %}{{ '<|assistant|>' }}{% endgeneration %}

{% endif %}
{% endfor %}"""


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("smollm2", CHATML),
        ("qwen", CHATML_WITH_TOOLS),
        ("llama2", LLAMA2),
        ("llama2_by_class", LLAMA2),
        ("mistral", ZEPHYR),
        ("llama3", LLAMA3),
    ],
)
def test_a_turn_has_the_tokens_of_transformers(kind: str, template: str, tmp_path: Path) -> None:
    write(tmp_path, files_of(kind), chat_template=template)
    tokenizer, expected = ours(tmp_path), theirs(tmp_path)
    end = expected.eos_token
    for text in ("hi", f"  {end} {end}x <unk>", MIXED, "{{ 1 }} {% if %} {# # #}", "\n"):
        turn = [{"role": "user", "content": text}]
        ids = expected.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        assert tokenizer.encode_turn(text) == ids, text
    bos = tokenizer.encode("")
    assert not bos or tokenizer.encode_turn("hi").count(bos[0]) == ("bos_token" in template)


def test_a_template_is_found_wherever_transformers_looks(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "{{ 1 / 0 }}"}, {"name": "default", "template": "<{{ messages[0].content }}>"}]
    write(tmp_path, files_of("gpt2"), chat_template=named)
    tokenizer = ours(tmp_path)
    assert tokenizer.decode(tokenizer.encode_turn("a")) == "<a>"
    assert tokenizer.fingerprint == ours(write(tmp_path / "without", files_of("gpt2"))).fingerprint
    (tmp_path / "chat_template.jinja").write_text("({{ messages[0].content }}{{ eos_token }}{{ sep_token }})")
    turn = [{"role": "user", "content": "é"}]
    assert ours(tmp_path).encode_turn("é") == theirs(tmp_path).apply_chat_template(turn, return_dict=False)
    for template, says in (({"a": 1}, "has chat_template={'a': 1}, which is not text"), ([{"name": "default"}], "damaged")):
        with pytest.raises(ModelError, match=says):
            ours(write(tmp_path / "wrong", files_of("gpt2"), chat_template=template))


def test_a_model_is_asked_and_the_prompt_stays_what_was_typed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_llama(tmp_path)
    template = "<{{ messages[0].role }}>{{ messages[0].content }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    lm = gptsweep.load(tmp_path)
    settings: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0.0}
    with caplog.at_level(logging.INFO):
        (templated,) = lm.generate("the", chat_template=True, **settings)
    assert "the chat template turns the first prompt into: '<user>the'" in caplog.text
    assert (templated.prompt, templated.prompt_tokens) == ("the", len("<user>the"))
    (plain,) = lm.generate("<user>the", **settings)
    assert plain.token_ids == templated.token_ids
    (tmp_path / "chat_template.jinja").write_text("({{ messages[0].role }}){{ messages[0].content }}")
    other = gptsweep.load(tmp_path)
    assert other.generate("<user>the", **settings)[0].point_id == plain.point_id
    assert other.generate("the", chat_template=True, **settings)[0].point_id != templated.point_id


# --- templates from strangers ---------------------------------------------------------------------------------------------


def refusal(template: str, text: str = "hi") -> str:
    """The error that a template ends in."""
    tokenizer = HFTokenizer(CharTokenizer(map(chr, range(32, 127))), (), {}, template, "here")
    with pytest.raises(ConfigError) as caught:
        tokenizer.encode_turn(text)
    message = str(caught.value)
    before = "sampling.chat_template=True: the chat template of here cannot be used: "
    after = "; write the turn into the prompt, with sampling.chat_template=false"
    assert message.startswith(before)
    assert message.endswith(after)
    assert "\n" not in message
    return message.removeprefix(before).removesuffix(after)


MILLION = "{% set x = 'a' * 1000000 %}"
WORK, LARGE = "takes more computation than any conversation", "makes a value of more than 1,048,592 characters"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for a in range(50000) %}{% for b in range(50000) %}{% endfor %}{% endfor %}", WORK),
        ("{% for a in range(50000) %}{% for b in range(50000) if false %}{% endfor %}{% endfor %}", WORK),
        ("{% for a in range(50000) %}{{ range(50000)|sort|first }}{% endfor %}", WORK),
        ("{% for a in range(50000) %}{{ range(50000)|select('odd')|first }}{% endfor %}", WORK),
        (MILLION + "{% set y = 'a' * 1000000 %}{% for a in range(50000) %}{{ x == y }}{% endfor %}", WORK),
        (MILLION + "{% for a in range(50000) %}{{ 'b' in x }}{{ x.count('b') }}{{ x is in(x) }}{% endfor %}", WORK),
        (MILLION + "{% set y %}{% for a in range(50000) %}{{ x|upper }}{% endfor %}{% endset %}", WORK),
        (MILLION + "{% for a in range(50000) %}{% set y = x[1:] %}{% endfor %}", WORK),
        (MILLION + "{% for a in range(50000) %}{{ x }}{% endfor %}", LARGE),
        (MILLION + "{{ x.replace('', x) }}", LARGE),
        (MILLION + "{{ x|replace('a', x) }}", LARGE),
        (MILLION + "{{ x.join(range(50000)|list) }}", LARGE),
        (MILLION + "{{ range(50000)|join(x) }}", LARGE),
        (MILLION + "{{ x ~ x }}", LARGE),
        (MILLION + "{{ [x, x] }}", LARGE),
        (MILLION + "{{ {'a': x, 'b': x} }}", LARGE),
        (MILLION + "{{ (x, x) }}", LARGE),
        (MILLION + "{{ namespace(a=x).a + x }}", LARGE),
        ("{% set x %}aaaa{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40, LARGE),
        ("{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}", LARGE),
        ("{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = {1: ns.x} %}{% endfor %}", "nests values"),
        ("{{ 'a' * 10 ** 12 }}", LARGE),
        ("{{ 10 ** 12 * [1] }}", LARGE),
        ("{{ (10 ** 12) ** (10 ** 12) }}", "makes a number of more than 4,096 bits"),
        ("{{ 2 ** 4000 * 2 ** 4000 }}", "makes a number of more than 4,096 bits"),
        ("{{ ('\n' * 100000)|indent(100000) }}", LARGE),
        ("{{ [1]|tojson(indent=10 ** 9) }}", "indents JSON by 1000000000"),
        ("{{ '%1000000000d' % 1 }}", "formats text with %"),
        ("{{ '{:1000000000d}'.format(1) }}", "calls something other than a macro"),
        ("{{ 'a'.ljust(1000000000) }}", "calls 'ljust'"),
        ("{{ 'a'|center(1000000000) }}", "No filter named 'center'"),
        ("{{ strftime_now('%Y' * 1000) }}", "formats the time with more than 100 characters"),
        ("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recurses without end"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}", WORK),
        ("{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}", "recurses without end"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nests too deeply"),
        ("{% for a in [1] %}" * 60 + "{% endfor %}" * 60, "too many statically nested blocks"),
        ("x" * 100_000, "has more than 65,536 characters"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ raise_exception.__globals__.os }}", "access to attribute '__globals__' of 'function' object is unsafe"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ messages|map('attr', '__class__')|list }}", "No filter named 'attr'"),
        ("{{ dict.fromkeys(range(9)) }}", "calls 'fromkeys'"),
        ("{{ [1].__class__('a') }}", "is unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{{ lipsum(n=100000) }}", "'lipsum' is undefined"),
        ("{{ raise_exception('only with\na system prompt.') }}", "it says: only with\\na system prompt"),
        ("{% if %}", "Expected an expression"),
        ("", "it renders nothing"),
    ],
)  # fmt: skip
def test_a_template_that_takes_too_much_or_asks_for_what_is_not_there_is_one_clear_line(template: str, says: str) -> None:
    assert says in refusal(template)


def test_a_namespace_that_holds_itself_is_not_written_out() -> None:
    loop = "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}"
    tokenizer = HFTokenizer(CharTokenizer(map(chr, range(32, 127))), (), {}, loop + "{{ a }}{{ b.a.b.a }}", "here")
    assert tokenizer.decode(tokenizer.encode_turn("x")) == "<Namespace><Namespace>"


def test_each_prompt_has_the_same_work_and_a_long_one_more() -> None:
    template = "{% for part in messages[0].content.split(' ') %}{{ part|trim|upper }} {% endfor %}"
    tokenizer = HFTokenizer(CharTokenizer(map(chr, range(32, 127))), (), {}, template, "here")
    for text in ("some words " * 20_000, "a", "b"):
        assert tokenizer.decode(tokenizer.encode_turn(text)).split() == text.upper().split()


def test_a_prompt_that_is_no_text_is_named_as_without_a_template() -> None:
    tokenizer = HFTokenizer(CharTokenizer("ab"), (), {}, "{{ messages[0].content }}", "here")
    with pytest.raises(PromptError, match=r"'\\udcff' \(U\+DCFF\), line 1, column 2"):
        tokenizer.encode_turn("a\udcff")
