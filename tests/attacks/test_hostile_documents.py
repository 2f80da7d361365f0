"""YAML and JSON that mean two things, explode, or hide text are refused before anything is built from them."""

from __future__ import annotations

import contextlib
import re
import time

import pytest

from fakes.governance import POLICY_YAML, edit
from msfl.policies.documents import AssetPolicy
from msfl.policies.encoding import MAX_YAML_BYTES, Malformed, load_yaml, read_json, read_yaml

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

HOSTILE_YAML = {
    "an alias bomb": (LAUGHS, "an anchor"),
    "an alias": ("a: *x", "an alias"),
    "an anchor alone": ("a: &x 1", "an anchor"),
    "an anchor on a key": ("&x a: 1", "an anchor"),
    "an anchor on a mapping": ("a: &x {b: 1}", "an anchor"),
    "a Python object": ("a: !!python/object/apply:os.system [id]", "a tag"),
    "a harmless tag": ("a: !!str 1", "a tag"),
    "a non-specific tag": ("a: ! 1", "a tag"),
    "a tag on a mapping": ("a: !x {b: 1}", "a tag"),
    "a merge key": ("a: {b: 1}\n<<: {c: 2}", "a merge key"),
    "a duplicate key": ("a: 1\nb: 2\na: 3", "a duplicate key"),
    "a duplicate key in quotes": ('a: 1\n"a": 3', "a duplicate key"),
    "a duplicate key below": ("a: {b: 1, b: 2}", "a duplicate key"),
    "a number as key": ("1: x", "a key that is not plain text"),
    "a list as key": ("? [a]\n: x", "a key that is not plain text"),
    "a second document": ("a: 1\n---\na: 2", "a second document"),
    "a directive": ("%YAML 1.1\n---\na: NO", "a % directive"),
    "a tag directive": ("%TAG ! tag:x,2000:\n---\na: 1", "a % directive"),
    "infinity": ("a: .inf", "the number"),
    "not a number": ("a: .nan", "the number"),
    "infinity by exponent": ("a: 1e999", "the number"),
    "too deep": ("[" * 1000, "nested too deeply"),
    "very many brackets": ("[" * 30_000, "too many brackets"),
    "too deep in blocks": ("- " * 1000 + "x", "nested too deeply"),
    "nothing": ("", "the file is empty"),
    "only a comment": ("# nothing", "the file is empty"),
    "a hidden direction": ("a: x\u202ey", "U+202E"),
    "a hidden direction in a comment": ("a: x # \u202e", "U+202E"),
    "a line break that editors do not show": ("a: x # y\rb: 2", "U+000D"),
    "a soft hyphen": ("a: x\u00ady", "U+00AD"),
    "a zero-width space": ("a: pass\u200bword", "U+200B"),
    "a decomposed letter": ("a: e\u0301", "NFC"),
    "a control character by escape": ('a: "\\x07"', "U+0007"),
    "half a surrogate": ('a: "\\ud800"', "U+D800"),
    "very many values": ("- x\n" * 8000, "too many values"),
    "very many commas": ("a: [" + "x," * 16_000 + "]", "too many brackets and commas"),
    "very many keys": ("".join(f"k{n}: 1\n" for n in range(3000)), "too many values"),
    "very many empty lists": ("a: [" + "[]," * 10_000 + "]", "too many brackets"),
    "a tab as indent": ("a:\n\tb: 1", "not YAML"),
    "an open bracket": ("a: [1", "not YAML"),
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_malformed(name: str) -> None:
    text, why = HOSTILE_YAML[name]
    with pytest.raises(Malformed, match=re.escape(why)):
        read_yaml(text.encode("utf-8", "surrogatepass"), "policy.yaml")


def test_a_document_over_the_limit_is_not_even_read() -> None:
    padding = b"#" * (MAX_YAML_BYTES + 1 - len(POLICY_YAML))
    with pytest.raises(Malformed, match="at most"):
        load_yaml(POLICY_YAML.encode() + padding, AssetPolicy)


@pytest.mark.parametrize("data", [b"\xff\xfea\x00", b"a: \xc3\x28", b"a: \x00"])
def test_bytes_that_are_no_text_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_yaml(data)


def test_the_last_of_two_equal_keys_does_not_win() -> None:
    text = edit(POLICY_YAML, "  min_sites: 2\n", "  min_sites: 2\n  min_sites: 1\n")
    with pytest.raises(Malformed) as caught:
        load_yaml(text.encode(), AssetPolicy, "policy.yaml")
    assert (caught.value.line, caught.value.key) == (35, "privacy.min_sites")
    assert "line 34" in caught.value.allowed


FILLERS = ["!", "x,", "[],", "- x\n", "k: 1\n", "\n", "#\n", " ", "x ", "  x\n", "[", "{", "\\x41", "'',", "? ", ": "]


@pytest.mark.slow
@pytest.mark.parametrize("filler", FILLERS)
@pytest.mark.parametrize("start", ["", "a: [", 'a: "', "a: |\n  x"])
def test_no_text_within_the_limit_keeps_the_reader_busy(filler: str, start: str) -> None:
    """Without limits the worst takes ten seconds. Processor time, the better of two: a busy machine does not count."""
    data = (start + filler * MAX_YAML_BYTES).encode()[:MAX_YAML_BYTES]
    assert min(cost(data) for _ in range(2)) < 0.25  # 0.06 s at most where this was measured


def cost(data: bytes) -> float:
    before = time.process_time()
    with contextlib.suppress(Malformed):
        load_yaml(data, AssetPolicy)
    return time.process_time() - before


def test_brackets_are_counted_before_any_is_read() -> None:
    """A flow collection is scanned to its end before its first value comes out."""
    with pytest.raises(Malformed, match="too many brackets"):
        read_yaml(b"[" + b"1," * 1500 + b"1]")
    assert len(read_yaml(b"[" + b"1," * 1400 + b"1]")[0]) == 1401


HOSTILE_JSON = {
    "a duplicate member": ('{"a": 1, "a": 1}', "duplicate"),
    "a duplicate by escape": ('{"a": 1, "\\u0061": 2}', "duplicate"),
    "a duplicate below": ('{"a": [{"b": 1, "b": 2}]}', "duplicate"),
    "not a number": ('{"a": NaN}', "NaN"),
    "infinity": ('{"a": -Infinity}', "Infinity"),
    "infinity by exponent": ('{"a": [1e999]}', "finite"),
    "too deep": ("[" * 100_000 + "]" * 100_000, "deeply"),
    "too deep in a string-like shell": ('["\\"", ' + "[" * 20 + "]" * 20 + "]", "deeply"),
    "quotes without end": ('\\"' * 100_000, "not JSON"),
    "a byte order mark": ("\ufeff{}", "U+FEFF"),
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json_is_malformed(name: str) -> None:
    text, why = HOSTILE_JSON[name]
    with pytest.raises(Malformed, match=re.escape(why)):
        read_json(text.encode())


def test_brackets_inside_text_are_not_depth() -> None:
    assert read_json(b'{"a": "[[[[[[[[[[[[[[[[[[[["}') == {"a": "[" * 20}
