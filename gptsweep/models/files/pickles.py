"""Read a pickle without running it: containers, numbers and text become Python values, objects become inert records.

Python's unpickler calls what the file names. Even without imports, a file can make it fill the memory (a memo index, an object
held a million times) or hash a single key for hours. This reader creates at most one small object for each operation in the
file, uses no compound keys, and calls nothing that the file names. `pickletools` decodes the operations.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

PICKLE_BYTES = 64 << 20
"""The largest pickle that is read. The tensors of a checkpoint are stored outside its pickle."""
OPERATIONS = 2_000_000
"""The most operations in a pickle. Each can create an object of up to a hundred bytes."""
_NAME_CHARACTERS = 500
_GREATEST_KEY = 1 << 60  # below it hash(n) == n; larger integers can be chosen to collide


class PickleError(ValueError):
    """Raised for a pickle that is damaged, too large, or uses operations that no checkpoint or vocabulary needs."""


@dataclass(frozen=True, slots=True)
class Named:
    """A name that the pickle asks to import, ``module.name``. It is never looked up."""

    path: str


@dataclass(slots=True, eq=False, repr=False)
class Inert:
    """A record in place of an object: what the pickle would have called, the arguments, and the state it would have set."""

    maker: Any
    arguments: Any
    state: Any = None
    items: dict[Any, Any] | None = None

    @property
    def path(self) -> str:
        """The name of what the pickle would have called, for messages."""
        return self.maker.path if isinstance(self.maker, Named) else "an object"

    def __repr__(self) -> str:
        return f"<{self.path}>"


Maker = Callable[..., Any]
"""Makes a value from the arguments of a call. If it raises `TypeError` or `ValueError`, the call becomes an `Inert`."""


def read_pickle(
    file: BufferedReader,
    size: int,
    makers: Mapping[str, Maker] | None = None,
    persistent: Callable[[Any], object] | None = None,
) -> Any:
    """Read the pickle that begins at the current position of ``file``, and leave the position at its end.

    Args:
        file: the file; nothing after the pickle is read.
        size: the most bytes that the pickle may have.
        makers: functions that replace the calls in the pickle, by ``module.name``; other calls become `Inert`.
        persistent: makes the value of a persistent id; None: such ids are refused.

    Raises:
        PickleError: the pickle is damaged, too large, or uses other operations.
    """
    try:
        return _Machine(_Limited(file, min(size, PICKLE_BYTES)), makers or {}, persistent).run()
    except PickleError:
        raise
    except Exception as error:  # a damaged pickle can raise IndexError, UnicodeDecodeError, KeyError and more
        raise PickleError(f"the pickle in it is damaged ({type(error).__name__})") from error


def mapping_of(value: object) -> dict[Any, Any] | None:
    """Return the items of a dictionary, or the items and attributes of an object that was read as `Inert`, else None.

    It handles dataclasses, `argparse.Namespace`, OmegaConf's ``DictConfig`` and subclasses of ``dict``.
    """
    if isinstance(value, dict):
        return value
    if not isinstance(value, Inert):
        return None
    attributes = dict(value.items or {})
    for part in value.state if isinstance(value.state, tuple) else (value.state,):
        if isinstance(part, dict):
            attributes |= part
    content = attributes.get("_content")
    if not isinstance(content, dict):
        return attributes
    nodes = {key: node.state if isinstance(node, Inert) else None for key, node in content.items()}
    return {key: state.get("_val") if isinstance(state, dict) else content[key] for key, state in nodes.items()}


def elements_of(value: object) -> list[Any] | tuple[Any, ...] | None:
    """Return the elements of a list, a tuple or a one-dimensional NumPy array, else None."""
    if isinstance(value, (list, tuple)):
        return value
    if not isinstance(value, Inert):
        return None
    dtype = shape = data = None
    if value.path.endswith("multiarray._reconstruct") and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, _, data = value.state
    elif value.path.endswith("numeric._frombuffer") and isinstance(value.arguments, tuple) and len(value.arguments) == 4:
        data, dtype, shape, _ = value.arguments
    if isinstance(data, list):  # an array of objects
        return data if shape == (len(data),) else None
    try:
        found = _numbers(dtype, data)
    except (TypeError, ValueError):
        return None
    return found if shape == (len(found),) else None


class _Limited:
    """A reader for `pickletools.genops` that returns at most ``left`` bytes of a file."""

    def __init__(self, file: BufferedReader, left: int) -> None:
        self._file, self._left = file, left
        self.size = left

    def read(self, count: int) -> bytes:
        return self._taken(self._file.read(min(count, self._left)))

    def readline(self) -> bytes:
        return self._taken(self._file.readline(self._left))

    def _taken(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


class _Machine:
    def __init__(self, file: _Limited, makers: Mapping[str, Maker], persistent: Callable[[Any], object] | None) -> None:
        self._file = file
        self._makers = _MAKERS | dict(makers)
        self._persistent = persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def run(self) -> Any:
        operations = pickletools.genops(self._file)  # type: ignore[arg-type]  # it only calls read and readline
        for count, (operation, argument, _) in enumerate(operations):
            if count == OPERATIONS:
                raise PickleError(f"the pickle in it has more than {OPERATIONS:,} operations")
            if operation.name == "STOP":
                return self._stack.pop()
            if operation.name in _LITERALS:
                self._stack.append(argument)
            else:
                self._do(operation.name, argument)
        raise PickleError("the pickle in it has no end")

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self._memo[argument])
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":  # a set becomes a list, as its members may be unhashable here
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                if len(stack) < size:
                    raise IndexError
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                items = self._marked()
                self._stack.append(tuple(items))
            case "LIST" | "FROZENSET":
                items = self._marked()
                self._stack.append(items)
            case "DICT":
                items = self._marked()
                self._stack.append({})
                self._set_items(self._stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = self._marked()
                self._set_items(self._stack[-1], items)
            case "APPEND":
                value = stack.pop()
                self._extend(stack[-1], [value])
            case "APPENDS" | "ADDITEMS":
                items = self._marked()
                self._extend(self._stack[-1], items)
            case "GLOBAL":
                stack.append(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self._named(module, attribute))
            case "REDUCE" | "NEWOBJ":
                arguments, maker = stack.pop(), stack.pop()
                stack.append(self._made(maker, arguments))
            case "NEWOBJ_EX":
                keywords, arguments, maker = stack.pop(), stack.pop(), stack.pop()
                stack.append(Inert(maker, arguments, keywords))
            case "INST":
                items = self._marked()
                self._stack.append(self._made(self._named(*argument.split(" ", 1)), tuple(items)))
            case "OBJ":
                maker, *items = self._marked()
                self._stack.append(self._made(maker, tuple(items)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Inert):
                    stack[-1].state = state
            case "POP":
                if stack:
                    stack.pop()
                else:
                    self._marked()
            case "POP_MARK":
                self._marked()
            case "DUP":
                stack.append(stack[-1])
            case "BINPERSID" if self._persistent is not None:
                stack.append(self._persistent(stack.pop()))
            case _:
                raise PickleError(f"the pickle in it uses {name}, which checkpoints and vocabularies do not")

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _set_items(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Inert):
            target.items = target.items if target.items is not None else {}
            target = target.items
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _is_key(key):
                target[key] = value

    def _extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target += items
        elif not isinstance(target, Inert):
            raise TypeError

    def _named(self, module: Any, attribute: Any) -> Named:
        if not (isinstance(module, str) and isinstance(attribute, str)) or len(module) + len(attribute) > _NAME_CHARACTERS:
            raise PickleError("the pickle in it imports something without a name")
        return Named(f"{module}.{attribute}")

    def _made(self, maker: Any, arguments: Any) -> Any:
        """Make the value of a call if a maker is known for it, else an `Inert`.

        Raises:
            PickleError: the values copied so far are larger than the file.
        """
        make = self._makers.get(maker.path) if isinstance(maker, Named) else None
        if make is not None and isinstance(arguments, tuple):
            self._copied += sum(len(each) for each in arguments if isinstance(each, (str, bytes, list, dict)))
            if self._copied > self._file.size + 1024:  # it copies the same text again and again
                raise PickleError("the pickle in it makes more than it holds")
            try:
                return make(*arguments)
            except (TypeError, ValueError, UnicodeError):
                pass
        return Inert(maker, arguments)


def _is_key(key: object) -> bool:
    if type(key) is int:
        return abs(key) < _GREATEST_KEY
    return type(key) in (str, bool, float, bytes, type(None))


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip


# --- calls that make plain values ----------------------------------------------------------------------------------------


def _dictionary(items: Any = ()) -> dict[Any, Any]:
    pairs = list(items.items()) if isinstance(items, dict) else items
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise TypeError
    return {key: value for key, value in pairs if _is_key(key)}


def _default_dictionary(_factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    return _dictionary(items)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Return the bytes that Python 3 pickles as latin-1 text in protocol 2 and below."""
    if type(text) is not str or encoding != "latin1":
        raise TypeError
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    (value,) = _numbers(dtype, data)
    return value


def _numbers(dtype: Any, data: Any) -> list[Any]:
    """Decode the numbers or texts in ``data``; ``dtype`` is the record of a pickled NumPy dtype.

    Raises:
        TypeError, ValueError: the two do not fit each other, or the dtype is not supported.
    """
    if not (isinstance(dtype, Inert) and dtype.path == "numpy.dtype" and isinstance(dtype.arguments, tuple)):
        raise TypeError
    name = dtype.arguments[0] if dtype.arguments else None
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "="
    if not isinstance(name, str) or not re.fullmatch(r"[biu][1248]|f[248]|b1|U[1-9]\d{0,6}", name):
        raise TypeError
    if order not in ("<", ">", "=", "|") or not isinstance(data, (bytes, bytearray)):
        raise TypeError
    if name.startswith("U"):
        text = bytes(data).decode("utf-32-be" if order == ">" else "utf-32-le", "surrogatepass")
        width = int(name[1:])
        if len(text) % width:
            raise ValueError
        return [text[start : start + width].rstrip("\0") for start in range(0, len(text), width)]
    import numpy as np  # imported late: only files that NumPy wrote need it

    found: list[Any] = np.frombuffer(bytes(data), np.dtype(order + name)).tolist()
    return found


_MAKERS: dict[str, Maker] = {
    "builtins.dict": _dictionary,
    "__builtin__.dict": _dictionary,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "_codecs.encode": _encoded,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
