"""Where a registry lies, and what is needed to be let in: said in a file, and wrong files are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from msfl.registry.distribution import DistributionRegistry
from msfl.registry.location import BadLocation, open_registry
from msfl.registry.oci_layout import LayoutRegistry

URL = "https://registry.example/ms/releases"


def access(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "registry.json"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_folder_and_an_address(tmp_path: Path) -> None:
    LayoutRegistry.create(tmp_path / "r")
    assert isinstance(open_registry(str(tmp_path / "r")), LayoutRegistry)
    assert isinstance(open_registry(URL), DistributionRegistry)
    assert isinstance(open_registry(URL, tmp_path / "not-there.json"), DistributionRegistry)
    given = access(tmp_path, '{"user": "ada", "password": "x", "hosts": ["login.example", "cdn.example:8443"]}')
    assert isinstance(open_registry(URL, given), DistributionRegistry)


@pytest.mark.parametrize("location", ["", "nowhere", "ftp://x/y", "https://registry.example"])
def test_what_is_no_registry(location: str) -> None:
    with pytest.raises(BadLocation):
        open_registry(location)


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ('{"user": "ada", "password": "secret"}', 0o640, "can be read by others: chmod 600"),
        ('{"user": "ada", "passwort": "secret"}', 0o600, "passwort"),
        ('{"user": "ada", "user": "eve"}', 0o600, "user"),
        ('{"hosts": ["https://cdn.example/x"]}', 0o600, "hosts"),
        ('{"ca": "/not/there.pem"}', 0o600, "cannot be read"),
        ("{", 0o600, "registry.json"),
    ],
)
def test_a_file_that_is_wrong_is_named_and_not_quoted(tmp_path: Path, text: str, mode: int, why: str) -> None:
    with pytest.raises(BadLocation, match=why) as raised:
        open_registry(URL, access(tmp_path, text, mode))
    assert "secret" not in str(raised.value)
