"""Mutants: the code with one small change, which a test must notice."""

import ast
import itertools
import re
from pathlib import Path
from typing import Final

import msgspec

from tests.mutation.changes import changes

FILES: Final = (
    "admission/*.py",
    "domain/ledger.py",
    "fair_queue.py",
    "shim/batcher.py",
    "shim/pipeline.py",
    "store/sqlite.py",
    "worker/apart.py",
    "worker/breaker.py",
    "worker/outage.py",
    "worker/plan.py",
    "worker/planner.py",
    "worker/processor.py",
    "worker/refunds.py",
    "worker/worker.py",
)
_EXCLUDED: Final = re.compile(r"_log\.|_meter\b|record_finished|init_worker_series|__slots__")
"""Statements about logs and metrics, and declarations without behaviour.

Also excluded are annotations, decorators, strings, first assignments (without them nothing works), and statements
outside functions and classes, which only set limits and pauses.
"""
_DROPPED: Final = ast.Expr | ast.AugAssign | ast.Delete | ast.Raise | ast.Return | ast.Continue | ast.Break
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Mutant(msgspec.Struct, frozen=True):
    """One change: the bytes from `start` to `end` of `file`, which is below `ingest/`, become `replacement`.

    `name` says what the change is. It does not depend on line numbers.
    """

    name: str
    file: str
    line: int
    start: int
    end: int
    replacement: str

    def apply(self, source: bytes) -> bytes:
        """Return the source with the change."""
        return source[: self.start] + self.replacement.encode() + source[self.end :]


def all_mutants(package: Path) -> list[Mutant]:
    """Return every mutant of `FILES`, in order. Raises ValueError if one of them does not exist."""
    enums = {name: members for path in package.rglob("*.py") for name, members in _enums(path).items()}
    mutants: list[Mutant] = []
    for pattern in FILES:
        files = sorted(package.glob(pattern))
        if not files:
            raise ValueError(f"{package / pattern} does not exist: correct FILES in {__name__}")
        for file in files:
            mutants += _Collector(file.read_bytes(), str(file.relative_to(package)), enums).collect()
    return mutants


def _enums(path: Path) -> dict[str, list[str]]:
    """Return the enums of a file, with the names of their members."""
    return {
        node.name: [ast.unparse(item.targets[0]) for item in node.body if isinstance(item, ast.Assign)]
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases)
    }


class _Collector:
    """Collects the mutants of one file."""

    def __init__(self, source: bytes, file: str, enums: dict[str, list[str]]) -> None:
        self._source = source
        self._file = file
        self._enums = enums
        self._lines = source.splitlines()
        self._offsets = [0, *itertools.accumulate(len(line) for line in source.splitlines(keepends=True))]
        self._scope: list[str] = []
        self._first_lines: dict[str, int] = {}
        self._mutants: list[Mutant] = []

    def collect(self) -> list[Mutant]:
        for node in ast.parse(self._source).body:
            if isinstance(node, _Function | ast.ClassDef):
                self._visit_definition(node)
        return self._mutants

    def _visit_definition(self, node: _Function | ast.ClassDef) -> None:
        self._scope.append(node.name)
        statements: list[ast.AST] = list(node.body)
        if not isinstance(node, ast.ClassDef):
            self._first_lines = _first_lines(node)
            statements[:0] = [default for default in (*node.args.defaults, *node.args.kw_defaults) if default]
            if isinstance(statements[-1], ast.Return) and statements[-1].value:
                statements[-1] = statements[-1].value  # the last return is not dropped
        for statement in statements:
            self._visit(statement)
        self._scope.pop()

    def _visit(self, node: ast.AST) -> None:
        """Add the mutants of a node and of everything in it."""
        if isinstance(node, _Function | ast.ClassDef):
            self._visit_definition(node)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self._visit(node.value)
        elif not _is_excluded(node):
            if self._can_be_dropped(node):
                self._add(node, "dropped", "pass")
            for part, text in changes(node, self._enums):
                self._add(part, f"{ast.unparse(part)} -> {text}", f"({text})")
            for child in ast.iter_child_nodes(node):
                self._visit(child)

    def _can_be_dropped(self, node: ast.AST) -> bool:
        match node:
            case ast.Expr(value=ast.Yield()):
                return False
            case ast.Assign(targets=[ast.Name(name)]):
                return node.lineno > self._first_lines.get(name, node.lineno)
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                return self._scope[-1] != "__init__"
            case _:
                return isinstance(node, _DROPPED)

    def _add(self, node: ast.AST, change: str, replacement: str) -> None:
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._offsets[node.lineno - 1] + node.col_offset
        end = self._offsets[node.end_lineno - 1] + node.end_col_offset
        line = self._lines[node.lineno - 1].decode().strip()
        name = f"{self._file} {'.'.join(self._scope)}: {line}: {change}"
        self._mutants.append(Mutant(name, self._file, node.lineno, start, end, replacement))


def _first_lines(function: _Function) -> dict[str, int]:
    """Return where each local name is assigned first; 0 for parameters."""
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    lines = {node.id: node.lineno for node in sorted(names, key=lambda node: -node.lineno)}
    return lines | {node.arg: 0 for node in ast.walk(function.args) if isinstance(node, ast.arg)}


def _is_excluded(node: ast.AST) -> bool:
    if isinstance(node, ast.stmt):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        return is_docstring or _EXCLUDED.search(ast.unparse(node).split("\n", 1)[0]) is not None
    # `strict` of `zip` is an assertion.
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict")
