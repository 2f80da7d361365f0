"""The tables of README.md name tests and contracts that exist, and leave out no number that they promise."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TEXT = (HERE / "README.md").read_text()
NAMED = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`")


def rows(heading: str) -> list[list[str]]:
    """Number, clause, tests of each row below a heading."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [row for row in lines if row[0].isdecimal()]


def file_of(name: str) -> Path:
    return ROOT / name if name.startswith("tests/") else HERE / name


def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(TEXT)
    assert len(named) > 80
    for name, function in named:
        file = file_of(name)
        if not file.exists():
            assert (ROOT / "tests" / name).exists(), name
            continue
        assert not function or function in functions_of(file), f"{name}::{function}"


def test_every_number_has_rows_and_every_row_a_test() -> None:
    attacks, sentences = rows("The attacks"), rows("What must hold, always")
    assert {int(row[0]) for row in attacks} == {*range(1, 21), 22}
    assert {int(row[0]) for row in sentences} == set(range(1, 9))
    for row in (*attacks, *sentences):
        assert NAMED.search(row[2]), row


def test_every_contract_that_is_named_exists() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = set(re.findall(r'contract "([^"]+)"', TEXT))
    assert named
    assert named <= {contract["name"] for contract in contracts}


def test_every_attack_file_is_named() -> None:
    for file in HERE.glob("test_*.py"):
        assert file.name in TEXT or file.name == Path(__file__).name, file.name
