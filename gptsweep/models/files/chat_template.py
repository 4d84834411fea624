"""Chat templates of Hugging Face's tokenizers: untrusted Jinja programs, run in a sandbox with a limit on their work.

Jinja's sandbox protects the surrounding program, but not its time and memory. So this module counts everything that takes
either: the nodes that each pass of a loop or call of a macro runs, and the size of every value that is made or read. The count
is deterministic: whether a template is refused depends only on the template and the prompt, not on the machine.

This module imports Jinja, so import it only where a template is used.
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
"""The largest value, in characters. Real templates produce little more than the prompt and a few thousand characters."""
_WORK = 8
"""The limit on a template's total work, in values of that size; it takes at most a fifth of a second."""
_STEP, _ITEM, _CALL = 16, 16, 64
"""The cost of a template node, an item of a list, and a call, in characters copied."""
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
"""The methods of values that a template may call. Each takes time in proportion to what it reads and makes."""
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int", "items",
    "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select", "selectattr",
    "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
"""The filters that a template may use without special treatment, for the same reason."""


class ChatTemplate:
    """A template that formats a conversation as the model saw it in training.

    Args:
        source: the template.
        special_tokens: texts of special tokens by name, such as ``bos_token``; the template can use them.

    Raises:
        TemplateError: the source is not a valid template, or is too long.
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
        """Format ``text`` as one user turn, followed by the beginning of the assistant's turn.

        Raises:
            TemplateError: the template raises an error itself, uses something undefined, or takes too much work.
            Exception: of any other kind, as a template can fail in any way.
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
    """``{% generation %}``, which marks the assistant's text for transformers. Its contents are rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """A namespace whose repr omits its contents, as two that contain each other would recurse without end."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Environment(ImmutableSandboxedEnvironment):
    """A Jinja environment set up as in transformers, which counts all work."""

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
        """Reset the count, for a prompt of ``characters`` characters."""
        self.largest = _VALUE_CHARACTERS + 8 * characters
        self.left = _WORK * self.largest

    def count(self, work: int) -> bool:
        """Subtract ``work`` from the budget. Always returns True, so that it can be part of a condition.

        Raises:
            TemplateError: the budget is used up.
        """
        self.left -= work
        if self.left < 0:
            raise TemplateError("it takes more computation than any conversation needs")
        return True

    def steps(self, number: int) -> bool:
        """`count` the work of running ``number`` nodes of the template."""
        return self.count(_STEP * number)

    def read(self, value: Any) -> Any:
        """Count the size of ``value``, and return it."""
        self.count(self.size(value))
        return value

    def made(self, value: Any) -> Any:
        """Count the size of a new ``value`` and return it; an iterator becomes a list.

        Raises:
            TemplateError: it is too large.
        """
        if isinstance(value, Iterator):
            value = list(itertools.islice(value, self.largest // _ITEM + 1))
        self._require(self.size(value))
        return self.read(value)

    def joined(self, *values: Any) -> str:
        """Implement the operator ``~``."""
        return self.concat(str(self.read(value)) for value in values)

    def concat(self, pieces: Iterable[str]) -> str:
        """Join the output of a template, a macro or a block."""
        whole: list[str] = []
        length = 0
        for piece in pieces:
            length += len(piece)
            self._require(length)
            whole.append(piece)
        self.count(length)
        return "".join(whole)

    def written(self, value: Any) -> str:
        """Convert a value to text for the output."""
        return str(self.read(value))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator that can make a large value from small ones."""
        self.count(_CALL)
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats text with %")
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._require_bits(left.bit_length() * abs(right))
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            self._require_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            self._require(self.size(sequence) * times if isinstance(times, int) else 0)
        return self.made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, called: Any, /, *values: Any, **named: Any) -> Any:
        """Call a macro, a global function or an allowed method of a value.

        Raises:
            SecurityError: anything else is called.
        """
        if isinstance(called, MethodType) and called.__self__ is self:
            return called(*values)  # a call that `_Counting` inserted
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
            raise SecurityError("it calls something other than a macro or a method of a string, list or dictionary")
        return self.made(super().call(context, called, *values, **named))

    def size(self, value: Any, depth: int = 0) -> int:
        """Estimate the size of a value in characters. The count stops once it exceeds the limit for a value."""
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
        """Implement the filter ``join``."""
        members = list(values) if attribute is None else list(map(make_attrgetter(self, attribute), values))
        texts = [str(self.read(value)) for value in members]
        self._require(sum(map(len, texts)) + len(texts) * len(str(separator)))
        return str(separator).join(texts)

    def replaced(self, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        """Implement the filter ``replace``."""
        text, before, after = str(value), str(old), str(new)
        self._require(len(text) + text.count(before) * len(after))
        return text.replace(before, after, -1 if count is None else count)

    def indented(self, value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        """Implement the filter ``indent``."""
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
        """Implement the filter ``tojson`` as transformers does, without escaping for HTML."""
        if indent is not None and not (isinstance(indent, int) and indent <= _WIDEST_INDENT):
            raise TemplateError(f"it indents JSON by {indent!r:.40}")
        self._require(self.size(value) * (1 + (indent or 0)))
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a filter or test so that the sizes of its arguments and its result are counted."""

        @functools.wraps(function)  # keeps the attribute by which Jinja recognises a function that takes the context
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
    """Inserts the counting into a template: in each loop and macro, and around operations that take longer on larger values."""

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
    """Make a node that calls a method of `_Environment`."""
    return nodes.Call(nodes.EnvironmentAttribute(method), values, [], None, None, lineno=at.lineno)


def _statement(method: str, value: nodes.Expr, at: nodes.Node) -> nodes.Node:
    return nodes.ExprStmt(_call(method, [value], at), lineno=at.lineno)


def _raise_exception(message: object) -> None:
    raise TemplateError(f"it says: {message:.300}" if isinstance(message, str) else "it rejects the conversation")


def _strftime_now(form: str) -> str:
    if len(form) > _LONGEST_FORMAT:
        raise TemplateError(f"it formats the time with more than {_LONGEST_FORMAT} characters")
    return datetime.now().strftime(form)
