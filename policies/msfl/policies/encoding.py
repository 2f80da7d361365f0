"""Strict readers: bytes of YAML or JSON in, one validated document out, or `Malformed` with file, line and key.

    bytes ──size──▶ UTF-8 ──brackets──▶ events ──no alias, anchor, tag, merge key, directive, second document──▶
          plain values (YAML 1.2 core scalars, decimal numbers only) ──no duplicate, depth, count─▶ pydantic ─▶ document

Why not a stock loader: PyYAML keeps the last of two equal keys, reads `NO` as false and expands alias bombs; Python's
json keeps the last duplicate and accepts NaN. What a custodian read must be what the gateway reads, so anything that
two readers could understand differently is refused. The YAML reader walks ruamel's event stream itself: nothing is
constructed before it is checked, and every value knows its line. Arrays become tuples.

Numbers must be finite. Text, comments included, must be NFC without invisible characters, so that what is shown is what
is signed; `visible` spells out what is not. `canonical_json` is for hashing what this program made; signed bytes are
never re-serialised.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import types
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

MAX_BYTES = 256 * 1024
MAX_DEPTH = 12
# What one YAML document may cost: about 25 µs for each value or key, 1.5 µs for each byte, and 8 µs for each bracket or
# comma, all of which are scanned before the first value of a flow collection comes out. So no document, refused or not,
# takes more than a tenth of a second. A policy has some two hundred values in two KiB.
MAX_YAML_BYTES = 32 * 1024
MAX_VALUES = 1_500
MAX_PROBLEMS = 50

M = TypeVar("M", bound=BaseModel)
Path = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,30})\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # controls, bidi and zero width, surrogates, odd breaks


@dataclass(frozen=True)
class Problem:
    """One thing wrong: where (line from 1, None when unknown), which key, what, and what is allowed instead."""

    line: int | None
    key: str
    what: str
    allowed: str = ""

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        return f"{where}{self.what}" + (f" (allowed: {self.allowed})" if self.allowed else "")


class Malformed(ValueError):
    """The bytes are not the document they claim to be. `line`, `key` and `allowed` are those of the first problem."""

    def __init__(self, file: str, problems: tuple[Problem, ...]) -> None:
        lines = (f"{file}:{p.line}: {p}" if p.line else f"{file}: {p}" for p in problems)
        super().__init__("\n".join(lines))
        self.file = file
        self.problems = problems
        self.line = problems[0].line
        self.key = problems[0].key
        self.allowed = problems[0].allowed


def sha256_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, UTF-8, finite numbers only; the same value always gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def visible(text: str) -> str:
    """`text`, or where a reader here would refuse its characters, its spelling in ASCII: `\\u200b` for U+200B."""
    # As it is, and as it will stand: in JSON a newline is an `n`, which an accent after it would compose with.
    flaw = _flaw(text) or _flaw(json.dumps(text, ensure_ascii=False))
    return text if flaw is None else text.encode("unicode_escape").decode("ascii")


def encode(document: BaseModel) -> bytes:
    """The canonical JSON bytes of a document; `load_json` reads them back to an equal document."""
    return canonical_json(document.model_dump(mode="json", exclude_none=False))


def load_yaml(data: bytes, model: type[M], name: str = "document") -> M:
    """Raises Malformed."""
    value, lines = read_yaml(data, name)
    return _validate(value, model, name, lines)


def load_json(data: bytes, model: type[M], name: str = "document", *, max_bytes: int = MAX_BYTES) -> M:
    """Raises Malformed."""
    value = read_json(data, name, max_bytes=max_bytes)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _malformed(error, model, name, _lines_of_json(data, name)) from None


# ------------------------------------------------------------------------------------------------ YAML


def read_yaml(data: bytes, name: str = "document") -> tuple[Any, dict[Path, int]]:
    """The plain value of one YAML 1.2 document and the line of each path in it. Raises Malformed."""
    text = _text(data, name, MAX_YAML_BYTES)
    reader = _YamlReader(text, name)
    return reader.document(), reader.lines


class _YamlReader:
    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._brackets = sum(map(text.count, "[]{},"))
        self._events = self._checked(YAML(typ="safe", pure=True).parse(text))
        self.lines: dict[Path, int] = {}

    def document(self) -> Any:
        if self._brackets > MAX_VALUES:
            raise self._error(None, "", "too many brackets and commas", f"at most {MAX_VALUES}")
        self._take(StreamStartEvent)
        if isinstance(first := next(self._events), StreamEndEvent):
            raise self._error(None, "", "the file is empty", "one YAML document")
        assert isinstance(first, DocumentStartEvent)
        value = self._value(next(self._events), (), 0)
        self._take(DocumentEndEvent)
        last = next(self._events)
        if not isinstance(last, StreamEndEvent):
            raise self._error(_line(last), "", "a second document", "one document per file")
        return value

    def _checked(self, events: Any) -> Iterator[Event]:
        try:
            for number, event in enumerate(events):
                if number > MAX_VALUES:
                    raise self._error(_line(event), "", "too many values", f"at most {MAX_VALUES} values and keys")
                self._refuse_features(event)
                yield event
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None else None
            raise self._error(line, "", f"not YAML: {_plainly(error.problem or error.context)}") from error
        except (YAMLError, ValueError) as error:
            if isinstance(error, Malformed):
                raise
            raise self._error(None, "", f"not YAML: {error}") from error

    def _refuse_features(self, event: Event) -> None:
        if isinstance(event, AliasEvent):
            raise self._error(_line(event), "", "an alias (*)", "write the value out")
        if getattr(event, "anchor", None) is not None:
            raise self._error(_line(event), "", "an anchor (&)", "write the value out")
        if isinstance(event, DocumentStartEvent) and (event.version or event.tags):
            raise self._error(_line(event), "", "a % directive", "plain YAML 1.2")
        if isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent) and event.tag is not None:
            raise self._error(_line(event), "", f"a tag ({event.tag})", "plain values")

    def _take(self, kind: type[Event]) -> None:
        event = next(self._events)
        assert isinstance(event, kind), event

    def _value(self, event: Event, path: Path, depth: int) -> Any:
        self.lines.setdefault(path, _line(event))
        if depth > MAX_DEPTH:
            raise self._error(_line(event), _dotted(path), "nested too deeply", f"{MAX_DEPTH} levels")
        if isinstance(event, ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(path, depth)
        assert isinstance(event, MappingStartEvent), event
        return self._mapping(path, depth)

    def _sequence(self, path: Path, depth: int) -> tuple[Any, ...]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            values.append(self._value(event, (*path, len(values)), depth + 1))
        return tuple(values)

    def _mapping(self, path: Path, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._scalar(event, path) if isinstance(event, ScalarEvent) else None
            if not isinstance(key, str) or key == "<<":
                what = "a merge key (<<)" if key == "<<" else "a key that is not plain text"
                raise self._error(_line(event), _dotted(path), what, "text keys")
            if key in values:
                first = self.lines[(*path, key)]
                raise self._error(
                    _line(event), _dotted((*path, key)), "a duplicate key", f"once; first on line {first}"
                )
            self.lines[(*path, key)] = _line(event)
            values[key] = self._value(next(self._events), (*path, key), depth + 1)
        return values

    def _scalar(self, event: ScalarEvent, path: Path) -> Any:
        text: str = event.value
        if event.style is not None:
            return self._clean(text, event, path)
        if text in _WORDS:
            return _WORDS[text]
        if _NOT_FINITE.match(text):
            raise self._error(_line(event), _dotted(path), f"the number {text}", "finite numbers")
        if _INTEGER.match(text):
            return int(text)
        if _FLOAT.match(text) and not _LEADING_ZERO.match(text) and not text.lstrip("+-").isdigit():
            number = float(text)
            if not math.isfinite(number):
                raise self._error(_line(event), _dotted(path), f"the number {text}", "finite numbers")
            return number
        return self._clean(text, event, path)

    def _clean(self, text: str, event: Event, path: Path) -> str:
        if flaw := _flaw(text):
            raise self._error(_line(event), _dotted(path), flaw, "visible NFC text")
        return text

    def _error(self, line: int | None, key: str, what: str, allowed: str = "") -> Malformed:
        return Malformed(self._name, (Problem(line, key, what, allowed),))


def _plainly(problem: str | None) -> str:
    """What the library says of the mistakes that people make most, in their words."""
    said = problem or ""
    if "'\\t'" in said:
        return "a tab; indent with spaces"
    if "expected <block end>" in said:
        return "the line is not indented like those before it, or a bracket or quote above it is not closed"
    if "mapping values are not allowed" in said:
        return "a colon where there can be none: the line before is not finished, or a text needs quotes"
    return said


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


# ------------------------------------------------------------------------------------------------ JSON


def read_json(data: bytes, name: str = "document", *, max_bytes: int = MAX_BYTES, any_text: bool = False) -> Any:
    """The plain value of one JSON text: no duplicate members, finite numbers, arrays as tuples. Raises Malformed.

    `any_text`: text may hold invisible characters, and be in any Unicode form. For what no one signs by its looks.
    """
    text = _text(data, name, max_bytes, any_text)

    def flaw_of(text: str) -> str | None:
        return None if any_text else _flaw(text)

    def error(what: str, allowed: str = "", key: str = "", line: int | None = None) -> Malformed:
        if line is None and key:
            line = next((n for path, n in _lines_of_json(data, name).items() if path and path[-1] == key), None)
        return Malformed(name, (Problem(line, key, what, allowed),))

    if _json_depth(text) > MAX_DEPTH:
        raise error("nested too deeply", f"{MAX_DEPTH} levels")

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise error("a duplicate key", "once", key)
            if flaw := flaw_of(key):
                raise error(f"a key with {flaw}", "visible NFC text")
            values[key] = freeze(value, key)
        return values

    def freeze(value: Any, key: str) -> Any:
        if isinstance(value, list):
            return tuple(freeze(item, key) for item in value)
        if isinstance(value, str) and (flaw := flaw_of(value)):
            raise error(flaw, "visible NFC text", key)
        if isinstance(value, float) and not math.isfinite(value):
            raise error("a number that is not finite", "finite numbers", key)
        return value

    def constant(word: str) -> Any:
        raise error(f"the number {word}", "finite numbers")

    try:
        return freeze(json.loads(text, object_pairs_hook=members, parse_constant=constant), "")
    except json.JSONDecodeError as problem:
        raise error(f"not JSON: {problem.msg}", line=problem.lineno) from None
    except Malformed:
        raise
    except ValueError as problem:  # an integer with more digits than Python converts
        raise error(f"not JSON: {problem}") from problem


def _lines_of_json(data: bytes, name: str) -> Mapping[Path, int]:
    """Where each path of a JSON text stands, for an error: JSON is YAML. As far as the YAML reader comes."""
    if len(data) > MAX_YAML_BYTES:
        return {}
    reader = _YamlReader(data.decode(), name)
    with contextlib.suppress(Malformed):
        reader.document()
    return reader.lines


def _json_depth(text: str) -> int:
    depth = deepest = 0
    # Possessive and with an optional end, so that an unclosed string costs one pass and not one per quote.
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', text, re.DOTALL):
        if bracket in ("[", "{"):
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in ("]", "}"):
            depth -= 1
    return deepest


# ---------------------------------------------------------------------------------------------- common


def _text(data: bytes, name: str, max_bytes: int, any_text: bool = False) -> str:
    if len(data) > max_bytes:
        raise Malformed(name, (Problem(None, "", f"{len(data)} bytes", f"at most {max_bytes} bytes"),))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Malformed(name, (Problem(line, "", "bytes that are not UTF-8", "UTF-8 text"),)) from error
    if any_text:
        return text
    # Comments too: a direction override in one changes how the line beside it looks to whoever signs.
    for number, row in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if flaw := _flaw(row):
            raise Malformed(name, (Problem(number, "", flaw, "visible NFC text"),))
    return text


def _flaw(text: str) -> str | None:
    if text.isascii() and text.isprintable():
        return None
    for character in text:
        if unicodedata.category(character) in _INVISIBLE and character not in "\n\t":
            return f"the invisible character U+{ord(character):04X}"
    return None if unicodedata.is_normalized("NFC", text) else "text that is not in Unicode form NFC"


def _validate(value: Any, model: type[M], name: str, lines: Mapping[Path, int]) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _malformed(error, model, name, lines) from None


def _malformed(error: ValidationError, model: type[BaseModel], name: str, lines: Mapping[Path, int]) -> Malformed:
    found = error.errors(include_url=False)
    problems = {_problem(e, model, lines) for e in found[:MAX_PROBLEMS]}
    first = sorted(problems, key=lambda p: (p.line or 0, p.key))
    if len(found) > MAX_PROBLEMS:
        first.append(Problem(None, "", f"and {len(found) - MAX_PROBLEMS} more problems"))
    return Malformed(name, tuple(first))


def _problem(error: Any, model: type[BaseModel], lines: Mapping[Path, int]) -> Problem:
    # Union members put their own names into `loc`; a path is as long as it can be found in the text.
    path: Path = tuple(error["loc"])
    known = _known(path, lines)
    line = lines.get(known)
    owner = _model_at(model, path[:-1])
    match error["type"]:
        case "extra_forbidden":
            allowed = ", ".join(owner.model_fields) if owner is not None else ""
            return Problem(line, _dotted(path), "an unknown key", allowed)
        case "missing":
            return Problem(line, _dotted(path), "is missing")
        case "literal_error" | "enum":
            return Problem(line, _dotted(path), f"{error['input']!r} is not known here", error["ctx"]["expected"])
        case "string_pattern_mismatch":
            return Problem(line, _dotted(path), _wrong_form(error["input"]), error["ctx"]["pattern"])
        case "value_error":
            return Problem(line, _dotted(path), str(error["ctx"]["error"]))
        case _:
            shown = path if not lines or known == path else known
            return Problem(line, _dotted(shown), f"{error['msg'][:1].lower()}{error['msg'][1:]}")


def line_of(path: Path, lines: Mapping[Path, int]) -> int:
    """The line of a path, or of the nearest thing around it that the text has."""
    return lines[_known(path, lines)]


def _known(path: Path, lines: Mapping[Path, int]) -> Path:
    while path and path not in lines:
        path = path[:-1]
    return path


def _wrong_form(text: str) -> str:
    """Names are ASCII, so that none can look like another: say which letter is not, as nobody would see it."""
    if text.isascii():
        return f"{text!r} has the wrong form"
    odd = next(c for c in text if not c.isascii())
    called = unicodedata.name(odd, "a character without a name")
    return f"{text!r} holds U+{ord(odd):04X} ({called}), which is no letter for a name"


def _model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The document type that holds the last step of `path`; None when the path leaves the typed tree."""
    here: Any = model
    for step in path:
        if isinstance(here, type) and issubclass(here, BaseModel):
            if step not in here.model_fields:
                return None
            here = here.model_fields[str(step)].annotation
        else:
            arguments = [a for a in typing.get_args(here) if a is not Ellipsis]
            here = arguments[-1] if arguments else None
        if typing.get_origin(here) in (typing.Union, types.UnionType):
            here = next((a for a in typing.get_args(here) if a is not type(None)), None)
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def _dotted(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
