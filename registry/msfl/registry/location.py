"""Where a registry lies, in one word, and what is needed to be let in.

    /srv/registry, registry                a folder in the OCI image layout
    https://host[:port]/repository         a registry that speaks OCI distribution; http on this machine only

What is needed to be let in is a file of its own, so that settings and command lines hold no password:
`{"user": …, "password": …, "ca": "/path/to/ca.pem", "hosts": ["login.example", "cdn.example:8443"]}`, each of it
optional. `ca` replaces the system's certificate authorities; `hosts` are other hosts that the registry may send us to.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated

from pydantic import Field

from msfl.policies.documents import Document
from msfl.policies.encoding import load_json
from msfl.policies.refusals import CannotProceed
from msfl.registry.distribution import Address, Credentials, DistributionRegistry
from msfl.registry.interface import Registry
from msfl.registry.oci_layout import LayoutRegistry

MAX_ACCESS_BYTES = 64 * 1024
Host = Annotated[str, Field(pattern=r"^[a-z0-9.-]+(:[0-9]{1,5})?$")]


class BadLocation(CannotProceed, ValueError):
    """What is written where a registry's location, or its access file, belongs is none."""


class Access(Document):
    user: Annotated[str, Field(max_length=256)] = ""
    password: Annotated[str, Field(max_length=4096, repr=False)] = ""
    ca: Annotated[str, Field(max_length=4096)] = ""
    hosts: Annotated[tuple[Host, ...], Field(max_length=16)] = ()


def open_registry(location: str, access_file: Path | None = None) -> Registry:
    """`access_file` may be missing. Raises BadLocation."""
    try:
        if "://" not in location:
            return LayoutRegistry(Path(location))
        access = Access() if access_file is None or not access_file.exists() else _access(access_file)
        address = Address.parse(location, access.hosts)
    except ValueError as error:
        raise BadLocation(str(error)) from error
    credentials = Credentials(access.user, access.password) if access.user else None
    try:
        return DistributionRegistry(address, credentials, ca=Path(access.ca) if access.ca else None)
    except OSError as error:  # ssl.SSLError is one
        raise BadLocation(f"{access_file}: the authorities in {access.ca} cannot be read: {error}") from error


def _access(file: Path) -> Access:
    """Raises ValueError."""
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(f"{file} may hold a password and can be read by others: chmod 600 {file}")
    return load_json(file.read_bytes(), Access, str(file), max_bytes=MAX_ACCESS_BYTES)
