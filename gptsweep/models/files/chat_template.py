"""Chat templates of Hugging Face's tokenizers: programs by strangers in Jinja, which are run in a sandbox, and only so long.

The sandbox of Jinja keeps a template from the program around it, not from its time and memory. So everything that takes either
is counted here: what a loop or a macro does each time it runs, the size of what is made, and of what is looked through. The
count is exact, so that whether a template is refused depends on it and the prompt alone, not on the machine.

This module imports Jinja, so it is imported where a template is used.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.environment import Template
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import do_indent, make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

_SOURCE_CHARACTERS = 1 << 16
_VALUE_CHARACTERS = 1 << 20
"""The size of one value: templates that people use make far less than the prompt and some thousand characters."""
_WORK = 8
"""All work of a template, in values of that size: a fifth of a second's, or less."""
_STEP, _ITEM, _CALL = 16, 16, 64
"""What a node of the template, a member of a list, and a call cost, in characters copied."""
_DEEPEST = 32
_LARGEST_BITS = 4096
_LONGEST_FORMAT, _WIDEST_INDENT = 100, 16

_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset((
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit",
        "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
        "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
        "strip", "swapcase", "title", "upper",
    )),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
}  # fmt: skip
"""What a template may call of its values; all of it takes time in proportion to what it reads and makes."""
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int", "items",
    "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select", "selectattr",
    "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
"""The filters of which the same holds."""


class ChatTemplate:
    """A template that writes a conversation as the model was trained on it.

    Args:
        source: the template.
        special_tokens: texts of special tokens by their names, ``bos_token`` and others, which the template may ask for.

    Raises:
        TemplateError: it is no template, or longer than any.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > _SOURCE_CHARACTERS:
            raise TemplateError(f"it has more than {_SOURCE_CHARACTERS:,} characters")
        self._environment = _Environment()
        self._special_tokens = dict(special_tokens)
        parsed = self._environment.parse(source)
        _Counting().visit(parsed)
        parsed.set_environment(self._environment)
        code = self._environment.compile(parsed)
        self._template = Template.from_code(self._environment, code, self._environment.globals)

    def render(self, text: str) -> str:
        """``text`` as one turn of a user, and the beginning of the answer.

        Raises:
            Exception: of any kind, as a template can do anything wrong; `TemplateError` where it says so itself, asks for what
                is not there, or takes more work than a conversation does.
        """
        self._environment.begin(len(text))
        return self._template.render(
            messages=[{"role": "user", "content": text}],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **self._special_tokens,
        )


class _Generation(Extension):
    """``{% generation %}``, by which transformers finds the model's own words; what stands inside is written as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """A namespace that is not written out: two that hold each other would have no end."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up, in which all work is counted."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        self.begin(0)
        extensions = (_Generation, LoopControlExtension)
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=self.written, extensions=extensions)
        functions: dict[str, Callable[..., Any]] = {name: self.filters[name] for name in _FILTERS}
        functions |= {"indent": self.indented, "join": self.joined_by, "replace": self.replaced, "tojson": self.as_json}
        self.filters = {name: self._counted(function) for name, function in functions.items()}
        tests: Mapping[str, Any] = self.tests
        self.tests = {name: self._counted(test) for name, test in tests.items()}
        self.globals = {
            "range": safe_range,
            "dict": dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def begin(self, characters: int) -> None:
        """Count anew, for a prompt of so many characters."""
        self.largest = _VALUE_CHARACTERS + 8 * characters
        self.left = _WORK * self.largest

    def count(self, work: int) -> bool:
        """Take ``work`` off what is left; True, to stand in a condition."""
        self.left -= work
        if self.left < 0:
            raise TemplateError("it takes more work than any conversation")
        return True

    def steps(self, number: int) -> bool:
        """`count` what so many nodes of the template take when they are run."""
        return self.count(_STEP * number)

    def read(self, value: Any) -> Any:
        """``value``, its size counted."""
        self.count(self.size(value))
        return value

    def made(self, value: Any) -> Any:
        """``value``, its size counted, and no larger than one may be."""
        if isinstance(value, Iterator):
            value = list(itertools.islice(value, self.largest // _ITEM + 1))
        self._require(self.size(value))
        return self.read(value)

    def joined(self, *values: Any) -> str:
        """The operator ``~``."""
        return self.concat(str(self.read(value)) for value in values)

    def concat(self, pieces: Iterable[str]) -> str:
        """What a template, a macro or a block writes."""
        whole: list[str] = []
        length = 0
        for piece in pieces:
            length += len(piece)
            self._require(length)
            whole.append(piece)
        self.count(length)
        return "".join(whole)

    def written(self, value: Any) -> str:
        """A value as it stands in the text."""
        return str(self.read(value))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators that make large values of small ones."""
        self.count(_CALL)
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats text by %")
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._require_bits(left.bit_length() * abs(right))
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            self._require_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            self._require(self.size(sequence) * times if isinstance(times, int) else 0)
        return self.made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: Any, /, *values: Any, **named: Any) -> Any:
        """Calls: of the template's macros, of its helpers, and of some methods of its values."""
        if isinstance(called, MethodType) and called.__self__ is self:
            return called(*values)  # what `_Counting` puts in
        self.count(_CALL)
        arguments = (*values, *named.values())
        for value in arguments:
            self.read(value)
        if isinstance(called, BuiltinMethodType | MethodType):
            owner, name = called.__self__, called.__name__
            if not isinstance(owner, LoopContext):
                if not any(isinstance(owner, kind) and name in names for kind, names in _METHODS.items()):
                    raise SecurityError(f"it calls {name!r:.80}")
                self.read(owner)
                if isinstance(owner, str) and name in ("join", "replace"):
                    changed = self.joined_by(values[0], owner) if name == "join" else self.replaced(owner, *values, **named)
                    return self.made(changed)
        elif not isinstance(called, Macro | LoopContext | Undefined) and called not in self.globals.values():
            raise SecurityError("it calls what is no macro, and no method of a text, a list or a dictionary")
        return self.made(super().call(context, called, *values, **named))

    def size(self, value: Any, depth: int = 0) -> int:
        """About how many characters a value takes; of one that is larger than a value may be, more than that."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, int):
            self._require_bits(value.bit_length())
        if isinstance(value, range):
            return 1 + _ITEM * len(value)
        if isinstance(value, Mapping):
            value = itertools.chain.from_iterable(value.items())
        elif not isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
            return 1
        if depth == _DEEPEST:
            raise TemplateError("it nests values too deeply")
        total = 1
        for each in value:
            total += _ITEM + self.size(each, depth + 1)
            if total > self.largest:
                break
        return total

    def joined_by(self, values: Any, separator: Any = "", attribute: Any = None) -> str:
        """The filter ``join``."""
        members = list(values) if attribute is None else list(map(make_attrgetter(self, attribute), values))
        texts = [str(self.read(value)) for value in members]
        self._require(sum(map(len, texts)) + len(texts) * len(str(separator)))
        return str(separator).join(texts)

    def replaced(self, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        """The filter ``replace``."""
        text, before, after = str(value), str(old), str(new)
        self._require(len(text) + text.count(before) * len(after))
        return text.replace(before, after, -1 if count is None else count)

    def indented(self, value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        """The filter ``indent``."""
        self._require(len(value) + len(value.splitlines()) * (len(width) if isinstance(width, str) else width))
        return do_indent(value, width, first, blank)

    def as_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """The filter ``tojson``, as transformers has it: nothing is escaped for HTML."""
        if indent is not None and not (isinstance(indent, int) and indent <= _WIDEST_INDENT):
            raise TemplateError(f"it indents JSON by {indent!r:.40}")
        self._require(self.size(value) * (1 + (indent or 0)))
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test whose work is counted, by what it reads and makes."""

        @functools.wraps(function)  # keeps Jinja's mark of a function that takes the context
        def counted(*values: Any, **named: Any) -> Any:
            self.count(_CALL)
            given = [value if isinstance(value, Context | EvalContext) else self.made(value) for value in values]
            for value in named.values():
                self.read(value)
            return self.made(function(*given, **named))

        return counted

    def _require(self, size: int) -> None:
        if size > self.largest:
            raise TemplateError(f"it makes a value of more than {self.largest:,} characters")

    def _require_bits(self, bits: int) -> None:
        if bits > _LARGEST_BITS:
            raise TemplateError(f"it makes a number of more than {_LARGEST_BITS:,} bits")


class _Counting(NodeTransformer):
    """Puts the counting into a template: in each loop and macro, and around what takes time in proportion to a value's size."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        number = _nodes(node)
        self.generic_visit(node)
        node.body = [_statement("steps", nodes.Const(number), node), *node.body]
        if node.test is not None:
            node.test = nodes.And(_call("steps", [nodes.Const(number)], node), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:  # noqa: N802
        number = _nodes(node)
        self.generic_visit(node)
        node.body = [_statement("steps", nodes.Const(number), node), *node.body]
        return node

    visit_CallBlock = visit_Macro  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", node.nodes, node)

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("made", [node], node)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("made", [node], node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("made", [node], node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _call("read", [node.expr], node)
        for operand in node.ops:
            operand.expr = _call("read", [operand.expr], node)
        return node


def _nodes(node: nodes.Node) -> int:
    return sum(1 for _ in node.find_all(nodes.Node))


def _call(method: str, values: list[nodes.Expr], at: nodes.Node) -> nodes.Call:
    """A call of a method of `_Environment`."""
    return nodes.Call(nodes.EnvironmentAttribute(method), values, [], None, None, lineno=at.lineno)


def _statement(method: str, value: nodes.Expr, at: nodes.Node) -> nodes.Node:
    return nodes.ExprStmt(_call(method, [value], at), lineno=at.lineno)


def _raise_exception(message: object) -> None:
    raise TemplateError(f"it says: {message:.300}" if isinstance(message, str) else "it refuses")


def _strftime_now(form: str) -> str:
    if len(form) > _LONGEST_FORMAT:
        raise TemplateError(f"it writes the time in a form of more than {_LONGEST_FORMAT} characters")
    return datetime.now().strftime(form)
