"""Does a test fail for every way in which `decide` could be wrong? Changes it, one place at a time, and counts.

    python tests/mutation/decide.py [--every N]      exit code 1 below MINIMUM; the survivors are printed

    decide.py ─▶ syntax tree ─▶ one change (a comparison, a condition, a constant, a code that is dropped, …)
        ─▶ a process of its own, in which the changed module stands for the real one ─▶ the tests, until one fails

What is not changed: words of messages, annotations, decorators. A change that alters nothing that anybody could see
counts as survived, so the score is a lower bound. Processes are forks: libraries are imported once.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "policies/msfl/policies/decide.py"
MODULE = "msfl.policies.decide"
TESTS = [
    "tests/unit/policies/test_decide.py",
    "tests/unit/policies/test_decide_plainly.py",
    "tests/attacks/test_config_smuggling.py",
]
MINIMUM = 0.95
AT_ONCE = 2

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
Change = Callable[[], None]


def changes(tree: ast.Module) -> Iterator[tuple[int, str, Change]]:
    """(line, what, do it) for each single change; the caller works on a fresh tree for each."""
    for node in _visited(tree):
        line = node.iter.lineno if isinstance(node, ast.comprehension) else getattr(node, "lineno", 0)
        yield from ((line, what, change) for what, change in _of(node))


def _visited(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases") or isinstance(node, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Import | ast.ImportFrom):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue  # a docstring, or `...`
            yield child
            yield from _visited(child)


def _of(node: ast.AST) -> Iterator[tuple[str, Change]]:
    match node:
        case ast.Compare(ops=[op, *_]) if type(op) in _COMPARISONS:
            other = _COMPARISONS[type(op)]
            yield f"{type(op).__name__} → {other.__name__}", lambda: node.ops.__setitem__(0, other())
            if len(node.ops) == 1 and isinstance(op, ast.Lt | ast.GtE | ast.Gt | ast.LtE):
                yield "comparison → Eq", lambda: node.ops.__setitem__(0, ast.Eq())
        case ast.BoolOp(op=op):
            turned = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield f"{type(op).__name__} → {type(turned).__name__}", lambda: setattr(node, "op", turned)
            for n in range(len(node.values)):
                yield f"operand {n} dropped", lambda n=n: node.values.pop(n)  # type: ignore[misc]
        case ast.UnaryOp(op=ast.Not()):
            yield "not dropped", lambda: setattr(node, "op", ast.UAdd())
        case ast.UnaryOp(op=ast.USub()):
            yield "minus dropped", lambda: setattr(node, "op", ast.UAdd())
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            swapped = _OPERATORS[type(op)]
            yield f"{type(op).__name__} → {swapped.__name__}", lambda: setattr(node, "op", swapped())
        case ast.Constant(value=bool(value)):
            yield f"{value} → {not value}", lambda: setattr(node, "value", not value)
        case ast.Constant(value=int(value)):
            yield f"{value} → {value + 1}", lambda: setattr(node, "value", value + 1)
        case ast.Call(func=ast.Name(id=name) as function) if name in _CALLS:
            yield f"{name} → {_CALLS[name]}", lambda: setattr(function, "id", _CALLS[name])
        case ast.If() | ast.IfExp():
            yield "condition → True", lambda: setattr(node, "test", ast.Constant(True))
            yield "condition → False", lambda: setattr(node, "test", ast.Constant(False))
        case ast.comprehension(ifs=[_, *_]):
            yield "filter dropped", lambda: node.ifs.clear()
        case ast.Return(value=ast.Tuple(elts=[ast.Constant(value=None), _]) as finding):
            yield "passes → refuses", lambda: finding.elts.__setitem__(0, _code("NO_POLICY"))
        case ast.Return(value=ast.Tuple(elts=[ast.Attribute(value=ast.Name(id="Code")), _]) as finding):
            yield "refuses → passes", lambda: finding.elts.__setitem__(0, ast.Constant(None))
            yield "another code", lambda: finding.elts.__setitem__(0, _code("NO_POLICY"))
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant):
            yield "returns None", lambda: setattr(node, "value", ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield "statement dropped", lambda: _drop(node)
        case _:
            pass


def _code(name: str) -> ast.expr:
    return ast.Attribute(ast.Name("Code", ast.Load()), name, ast.Load())


def _drop(node: ast.AST) -> None:
    node.__class__ = ast.Pass


def mutant(number: int) -> tuple[str, str]:
    """Where and what, and the text of the changed module."""
    tree = ast.parse(SOURCE.read_text())
    line, what, change = next(c for n, c in enumerate(changes(tree)) if n == number)
    change()
    return f"line {line}: {what}", ast.unparse(ast.fix_missing_locations(tree))


def survivors(mutants: list[tuple[str, str]]) -> list[str]:
    """Where the changes are that no test notices; `AT_ONCE` forks at a time."""
    alive: list[str] = []
    running: dict[int, str] = {}
    waiting = list(reversed(mutants))
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            where, text = waiting.pop()
            child = os.fork()
            if child == 0:
                os._exit(_tested(text))
            running[child] = where
        child, status = os.wait()
        where = running.pop(child)
        if os.waitstatus_to_exitcode(status) == 0:
            alive.append(where)
    return alive


def _tested(text: str) -> int:
    import pytest
    from hypothesis import Phase, settings

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.dont_write_bytecode = True
    settings.register_profile("mutation", derandomize=True, database=None, phases=[Phase.generate])
    settings.load_profile("mutation")
    module = types.ModuleType(MODULE)
    module.__file__ = str(SOURCE)
    sys.modules[MODULE] = module
    try:
        exec(compile(text, str(SOURCE), "exec"), module.__dict__)
    except Exception:  # noqa: BLE001  # a module that cannot even be made is a mutant that is found
        return 1
    return int(pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS]))


def main(every: int) -> int:
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "tests"))
    # What forks share: everything but the module itself and what is made of it.
    for name in ("pytest", "hypothesis.strategies", "pydantic", "msfl.policies.trust", "msfl.policies.resolve"):
        importlib.import_module(name)
    assert MODULE not in sys.modules
    number = sum(1 for _ in changes(ast.parse(SOURCE.read_text())))
    if not survivors([("nowhere", SOURCE.read_text())]):
        print("the tests fail without any change")
        return 1
    chosen = [mutant(n) for n in range(0, number, every)]
    alive = survivors(chosen)
    score = 1 - len(alive) / len(chosen)
    for where in alive:
        print(f"survived: {SOURCE.relative_to(ROOT)} {where}")
    print(f"{len(chosen) - len(alive)} of {len(chosen)} changes are noticed: {score:.1%} (at least {MINIMUM:.0%})")
    return 0 if score >= MINIMUM else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[2]) if sys.argv[1:2] == ["--every"] else 1))
