"""What no message can bring about, read off the source: nothing here makes code of data, names a module that is not
written here, asks a registry for a tag, or asks the machine for the time while it decides.

Each check is shown a line that breaks it first: a check that cannot fail would prove nothing.
"""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from msfl.policies import decide as engine

ROOT = Path(__file__).parents[2]
PARTS = (
    "sdk", "orchestrator", "gateway", "learning", "registry", "runtime", "protos", "policies", "imaging", "evaluation",
)  # fmt: skip
# Inside the sandbox, of the verified image, the module that its signed config names.
ENTRY_POINT = "runtime/msfl/runtime/launcher.py: runpy.run_module"
# There, too: what an import asks for is passed on if the image's lock holds it. It can only find less.
IMPORT_HOOK = "runtime/msfl/runtime/launcher.py: .find_spec of a value"
Check = Callable[[ast.AST], Iterator[str]]


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def dotted(node: ast.AST) -> str:
    """`a.b.c`, or what of it is names."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
        case _:
            return ""


def found_in(check: Check, text: str) -> list[str]:
    return [what for node in ast.walk(ast.parse(text)) for what in check(node)]


def broken(check: Check, files: Iterator[Path]) -> list[str]:
    seen = [(file, file.read_text()) for file in files]
    assert seen
    return [f"{file.relative_to(ROOT)}: {what}" for file, text in seen for what in found_in(check, text)]


# --------------------------------------------------------------------------------------------- code made of data

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "code",
    "codeop",
    "pty",
}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "torch.load", "torch.jit.load", "yaml.load", "runpy.run_path", "runpy.run_module",
    "numpy.fromregex", "pydoc.locate", "locate", "asyncio.create_subprocess_shell",
}  # fmt: skip


def code_of_data(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (n.name for n in names if n.name.partition(".")[0] in MODULES)
        case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES:
            yield module
        case ast.Call(func=function, keywords=keywords):
            if dotted(function) in CALLS:
                yield dotted(function)
            for keyword in keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("shell", "allow_pickle") and not off:
                    yield f"{keyword.arg}="
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            words = [e.value if isinstance(e, ast.Constant) else None for e in elements]
            if ("pip", "install") in itertools.pairwise(words) or "-c" in words[1:2]:
                yield f"runs {words}"
        case _:
            pass


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from marshal import loads",
        "eval(message)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "torch.load(file)",
        "numpy.load(file, allow_pickle=True)",
        "run([sys.executable, '-m', 'pip', 'install', name])",
        "run(['sh', '-c', text])",
    ],
)
def test_the_check_sees_it(line: str) -> None:
    assert found_in(code_of_data, line)


def test_nothing_here_makes_code_of_data() -> None:
    assert broken(code_of_data, sources(*PARTS)) == [ENTRY_POINT]


# -------------------------------------------------------------------------------------------------- module names


def modules_by_name(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=function, args=arguments) if dotted(function).rpartition(".")[2] in (
            "import_module", "find_spec", "spec_from_file_location", "load_module",
        ):  # fmt: skip
            if not arguments or not isinstance(arguments[0], ast.Constant):
                yield f"{dotted(function)} of a value"
        case _:
            pass


def test_modules_are_named_in_the_source() -> None:
    assert found_in(modules_by_name, "importlib.import_module(message['class'])")
    assert found_in(modules_by_name, "importlib.import_module('msfl')") == []
    assert broken(modules_by_name, sources(*PARTS)) == [IMPORT_HOOK]


# ---------------------------------------------------------------------------------------------------------- tags


def asks_for_a_tag(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=ast.Attribute(attr="resolve"), args=[_, *_]):  # a path's own takes no argument
            yield "resolve"
        case ast.Call(func=function) if dotted(function) in ("digest_of", "tag_of", "publish.digest_of"):
            yield dotted(function)
        case _:
            pass


def test_a_site_asks_no_registry_for_a_tag() -> None:
    """What is pulled, looked up and started there is named by its digest."""
    assert found_in(asks_for_a_tag, "registry.resolve('name_1.0.0')")
    files = [*sources("gateway", "runtime"), ROOT / "registry/msfl/registry/pull.py"]
    assert broken(asks_for_a_tag, iter(files)) == []


# ------------------------------------------------------------------------------------- time, chance, surroundings

SURROUNDINGS = {"time", "random", "secrets", "uuid", "os", "socket", "subprocess", "platform", "getpass", "tempfile"}
NOW = ("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "datetime.datetime.now")
COMMANDS = {"main.py", "federation.py"}  # `msfl policy`, `msfl federation`: they are where the time comes in


def asks_around(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (n.name for n in names if n.name.partition(".")[0] in SURROUNDINGS)
        case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in SURROUNDINGS:
            yield module
        case ast.Call(func=function) if dotted(function) in (*NOW, "open", "input", "print"):
            yield dotted(function)
        case _:
            pass


def test_the_governance_core_asks_nobody_for_the_time() -> None:
    """Nor for chance, a file or who runs it: whatever it decides can be decided again from what was passed in."""
    for line in ("import time", "from secrets import token_hex", "datetime.now(UTC)", "open(file)"):
        assert found_in(asks_around, line)
    core = [file for file in sources("policies") if file.name not in COMMANDS]
    machines = [*sources("orchestrator/msfl/orchestrator/runs"), ROOT / "gateway/msfl/gateway/machine.py"]
    assert len(core) > 15
    assert broken(asks_around, iter([*core, *machines])) == []


def test_a_decision_is_told_the_time() -> None:
    for function in (engine.decide, engine.recheck):
        now = inspect.signature(function).parameters["now"]
        assert now.default is inspect.Parameter.empty
    assert "now" not in {field for field in engine.Request.__dataclass_fields__}
