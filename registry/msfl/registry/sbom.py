"""The list of everything in a release, as CycloneDX 1.6: written from what was built, and held against what is there.

    release   the image's name, version and digest                             metadata.component
    python    every distribution of the environment lock, by name and version  pkg:pypi/…, with the hash of its files
    system    every Debian package of the base, if there is one                pkg:deb/…

The hash of a distribution is that of its rows in the lock, so that a list and a lock can be compared without the files.
The same release gives the same list: no clock, and a serial number made from the digest.
"""

from __future__ import annotations

import re
import uuid
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from msfl.policies.encoding import Malformed, canonical_json, read_json, sha256_of
from msfl.registry.base import BaseImage
from msfl.registry.environment import EnvironmentLock, LockedDistribution

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

SBOM_TYPE = "application/vnd.cyclonedx+json"
MAX_SBOM_BYTES = 4 << 20
_SERIAL = uuid.UUID("6d73666c-0000-5000-8000-73626f6d0001")
_STATUS = re.compile(r"^(Package|Version|Architecture|Status): (.*)$", re.MULTILINE)


def write_sbom(name: str, version: str, digest: str, lock: EnvironmentLock, base: BaseImage | None) -> bytes:
    """Raises ValueError when what was written is not valid CycloneDX, which would be a bug."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bom = Bom()
    bom.serial_number = uuid.uuid5(_SERIAL, digest)
    bom.metadata.timestamp = None  # type: ignore[assignment]  # optional in CycloneDX
    bom.metadata.component = release = _release(name, version, digest)
    parts = [*_python(lock), *(_system(base) if base else ())]
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(release, parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # A release that requires nothing depends on nothing.
        text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    if (error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        raise ValueError(f"the list of {name}:{version} is not CycloneDX: {error}")
    return text.encode()


def sbom_flaws(sbom: bytes, digest: str, lock: EnvironmentLock) -> tuple[str, ...]:
    """Every way in which a list, from wherever, does not fit an image and its lock; one sentence each."""
    try:
        said: Any = read_json(sbom, "SBOM", max_bytes=MAX_SBOM_BYTES)
        about = {h["content"] for h in said["metadata"]["component"]["hashes"]}
        listed = {_name(c): _row(c) for c in said["components"] if str(c.get("purl", "")).startswith("pkg:pypi/")}
    except (Malformed, KeyError, TypeError, AttributeError) as error:
        return (f"the list cannot be read as CycloneDX ({error!r:.200})",)
    flaws = [] if about == {digest.removeprefix("sha256:")} else [f"the list is about another image than {digest}"]
    locked = {n: (d.version, distribution_hash(d)) for n, d in lock.distributions.items()}
    for name in sorted(locked.keys() | listed.keys()):
        here, there = locked.get(name), listed.get(name)
        if there is None:
            flaws.append(f"the image requires {name}, which the list does not name")
        elif here is None:
            flaws.append(f"the list names {name}, which the image does not require")
        elif here != there:
            flaws.append(f"the image requires {name} {here[0]}, and the list has {there[0]} or other files of it")
    return tuple(flaws)


def distribution_hash(distribution: LockedDistribution) -> str:
    """Hex sha256 of the distribution's rows in the lock."""
    return sha256_of(canonical_json(dict(distribution.files))).removeprefix("sha256:")


def _name(component: Mapping[str, Any]) -> str:
    return str(component["name"])


def _row(component: Mapping[str, Any]) -> tuple[str, str]:
    return str(component["version"]), "".join(str(h["content"]) for h in component.get("hashes", ()))


def _release(name: str, version: str, digest: str) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    content = digest.removeprefix("sha256:")
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=content)]
    return Component(name=name, version=version, type=ComponentType.CONTAINER, bom_ref=digest, hashes=hashes)


def _python(lock: EnvironmentLock) -> Iterator[Component]:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    for name, distribution in sorted(lock.distributions.items()):
        url = PackageURL("pypi", None, name, distribution.version)
        yield Component(
            name=name,
            version=distribution.version,
            type=ComponentType.LIBRARY,
            purl=url,
            bom_ref=str(url),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=distribution_hash(distribution))],
        )


def _system(base: BaseImage) -> Iterator[Component]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    status = base.contents.kept.get("var/lib/dpkg/status", b"").decode("utf-8", "replace")
    for paragraph in status.split("\n\n"):
        said = dict(_STATUS.findall(paragraph))
        if "installed" not in said.get("Status", "").split() or not {"Package", "Version"} <= said.keys():
            continue
        url = PackageURL("deb", "debian", said["Package"], said["Version"], {"arch": said.get("Architecture", "all")})
        yield Component(
            name=said["Package"], version=said["Version"], type=ComponentType.LIBRARY, purl=url, bom_ref=str(url)
        )
