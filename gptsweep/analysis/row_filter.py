"""The expression language of ``--where``, such as ``temperature < 1 and top_k == 50``: parsed, never executed."""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import ResultsError

Mask = npt.NDArray[np.bool_]

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
WANTED = "compare columns with values, as in temperature < 1 and top_k in (50, null) or not model == 'gpt2'"


def where(table: pd.DataFrame, expression: str) -> Mask:
    """Which rows of ``table`` satisfy the expression.

    It may contain column names, numbers, quoted text, ``null``, comparisons (also chained), ``in`` with a list, ``+ - * /``,
    and ``and``, ``or``, ``not``. An empty cell equals ``null``; every other comparison with it is false.

    Raises:
        ResultsError: anything else, or the name of an unknown column.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        return truth(tree, table, expression)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ResultsError("where", expression, f"cannot be read; {WANTED}") from error
    except (TypeError, ArithmeticError) as error:
        raise ResultsError("where", expression, f"compares text with a number; {WANTED}") from error


def truth(node: ast.expr, table: pd.DataFrame, expression: str) -> Mask:
    """Evaluate a condition for each row; see `where` for ``expression``, which errors show.

    Raises:
        ResultsError: it is not a condition, or contains an unknown column or a forbidden operation.
    """
    if isinstance(node, ast.BoolOp):
        parts = [truth(part, table, expression) for part in node.values]
        both = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return np.asarray(both.reduce(parts), dtype=bool)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~truth(node.operand, table, expression)
    if isinstance(node, ast.Compare):
        holds = np.ones(len(table), dtype=bool)
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            holds &= compared(left, op, right, table, expression)
            left = right
        return holds
    found = value(node, table, expression)
    if isinstance(found, pd.Series) and found.dtype in ("bool", "boolean"):
        return found.fillna(False).to_numpy(bool)
    raise ResultsError("where", expression, f"{ast.unparse(node)} is not a condition; {WANTED}")


def compared(left: ast.expr, op: ast.cmpop, right: ast.expr, table: pd.DataFrame, expression: str) -> Mask:
    """Evaluate one comparison for each row.

    Raises:
        ResultsError: the operator does not go with its operands, or see `value`.
    """
    if isinstance(op, (ast.In, ast.NotIn)):
        if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
            raise ResultsError("where", expression, f"in needs a list; {WANTED}")
        found = [compared(left, ast.Eq(), each, table, expression) for each in right.elts]
        inside = np.logical_or.reduce(found) if found else np.zeros(len(table), dtype=bool)
        return ~inside if isinstance(op, ast.NotIn) else np.asarray(inside, dtype=bool)
    a, b = value(left, table, expression), value(right, table, expression)
    if a is None:
        a, b = b, a
    equal = isinstance(op, (ast.Eq, ast.Is))
    if b is None:
        if not equal and not isinstance(op, (ast.NotEq, ast.IsNot)):
            raise ResultsError("where", expression, f"null cannot be ordered; {WANTED}")
        empty = a.isna().to_numpy(bool) if isinstance(a, pd.Series) else np.full(len(table), a is None)
        return empty if equal else ~empty
    if type(op) not in COMPARISONS:
        raise ResultsError("where", expression, f"cannot be read; {WANTED}")
    found = COMPARISONS[type(op)](a, b)
    return found.fillna(False).to_numpy(bool) if isinstance(found, pd.Series) else np.full(len(table), bool(found))


def value(node: ast.expr, table: pd.DataFrame, expression: str) -> Any:
    """Evaluate a column, a constant, or arithmetic on them; None for ``null``.

    Raises:
        ResultsError: an unknown column, or anything else.
        TypeError: arithmetic on text.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, bool, type(None))):
        return node.value
    if isinstance(node, ast.Name):
        if node.id == "null":
            return None
        if node.id in ("true", "false"):
            return node.id == "true"
        if node.id not in table:
            names = [str(name) for name in table.columns]
            near = difflib.get_close_matches(node.id, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise ResultsError("where", node.id, f"is not a column; {hint}")
        return table[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value(node.operand, table, expression)
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        sides = [value(side, table, expression) for side in (node.left, node.right)]
        if any(isinstance(side, str) for side in sides):
            raise TypeError
        return ARITHMETIC[type(node.op)](*sides)
    raise ResultsError("where", expression, f"{ast.unparse(node)} is not allowed; {WANTED}")
