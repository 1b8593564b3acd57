"""Conditions on rows, as people write them: ``judge > 0.7 and not 'loops' in flags``.

Names are columns (``a.b`` reaches into a struct), numbers of a row's checks (``length`` is ``hala_checks.length``), and
what a task added, without its ``hala_`` (``judge`` is ``hala_judge``). The language is Python's, evaluated by
simpleeval: nothing of it reaches a file, a module or another program.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa

from hala_hpc.config.errors import HalaError, did_you_mean, first_line, within
from hala_hpc.data.columns import reach
from hala_hpc.data.schema import Row

CHECKS: Final = "hala_checks"
"""Column: the numbers of a row's checks, by name, and what its translation took."""
FLAGGED: Final = "flagged: "
"""Begins the names under which workers count rows by the flags of their checks."""
OURS: Final = "hala_"
"""Begins the names of columns that tasks add for themselves."""
FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "len": len,
    "lower": str.lower,
    "matches": lambda text, pattern: re.search(pattern, text) is not None,
    "text": lambda value: "\n".join(_texts(value)),
}
"""What a condition can call: ``matches(x, pattern)`` looks for a regular expression, ``text(x)`` is all text in a value
(of a conversation, for example).
"""
EXAMPLE: Final = "for example: length > 2 or 'loops' in flags"


class Where:
    """A condition on the rows of one schema. Raises HalaError for one that cannot be read, and for unknown names."""

    def __init__(self, condition: str, schema: pa.Schema) -> None:
        from simpleeval import EvalWithCompoundTypes, InvalidExpression

        self._condition = condition
        self._row: Row = {}
        self._is_missing = False
        self._evaluator: Any = EvalWithCompoundTypes(functions=FUNCTIONS, names=self._value)
        self._invalid: type[Exception] = InvalidExpression
        try:
            tree = ast.parse(condition.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise HalaError(f"'{condition}' is no condition: {first_line(error)}", EXAMPLE) from error
        self._tree = _Names().visit(tree)
        called = [node.func for node in ast.walk(self._tree) if isinstance(node, ast.Call)]
        if odd := next((ast.unparse(name) for name in called if ast.unparse(name) not in FUNCTIONS), None):
            raise HalaError(f"'{condition}': nothing is called '{odd}'", did_you_mean(odd, FUNCTIONS))
        names = [node for node in ast.walk(self._tree) if isinstance(node, ast.Name) and node not in called]
        with within(f"'{condition}'"):
            self._columns = {node.id: _column(node.id, schema) for node in names}
        if not names:
            raise HalaError(f"'{condition}': looks at no column, so it holds for all rows or none", EXAMPLE)

    @functools.cached_property
    def columns(self) -> Sequence[str]:
        """The columns of the schema that it looks at."""
        return sorted({column.split(".")[0] for column in self._columns.values()})

    def holds(self, row: Row) -> bool:
        """Whether a row fulfils it; one in which a value is missing that has to be compared does not.

        Raises HalaError where values cannot be compared.
        """
        self._row, self._is_missing = row, False
        try:
            return bool(self._evaluator.eval(self._condition, previously_parsed=self._tree))
        except (self._invalid, TypeError, ValueError, AttributeError, ArithmeticError, LookupError, re.error) as error:
            if self._is_missing:
                return False
            raise HalaError(f"'{self._condition}': {error}", EXAMPLE) from error

    def _value(self, node: ast.Name) -> Any:
        value = reach(self._row, self._columns[node.id])
        self._is_missing |= value is None
        return value


class _Names(ast.NodeTransformer):
    """``a.b.c`` is one name, so that it is looked up in the schema as a whole."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        inner = self.visit(node.value)
        if isinstance(inner, ast.Name):
            return ast.copy_location(ast.Name(f"{inner.id}.{node.attr}", ast.Load()), node)
        return node


def _column(name: str, schema: pa.Schema) -> str:
    """The column that a name means. Raises HalaError."""
    known = set(_paths(schema))
    for column in (name, f"{CHECKS}.{name}", f"{OURS}{name}"):
        if column in known:
            return column
    raise HalaError(f"rows have no '{name}'", did_you_mean(name, known))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _paths(fields: Any, before: str = "") -> Iterator[str]:
    for field in fields:
        yield before + field.name
        if pa.types.is_struct(field.type):
            yield from _paths(field.type, f"{before}{field.name}.")
