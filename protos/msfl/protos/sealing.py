"""Sealed streams: what travels between a site's gateway and the aggregator, readable by nobody in between.

    run secret (32 random bytes, made by the gateway)
      │ HPKE to the centre's public key, pinned by the registration token ─▶ `wrapped`, relayed by the orchestrator
      └ HKDF(secret, salt = the site's symmetric key, info = run, site)  ─▶ run key      both must be broken
    stream key = HKDF(run key, salt = 32 random bytes, info = "msfl/stream/v1|" + sha256(header))
    file       = u32 header length | header JSON | salt | chunks of ≤ 1 MiB ciphertext + 16-byte tag
    chunk i    : AES-256-GCM, nonce = 7 zero bytes | u32 i | last?  (STREAM, Hoang et al. 2015), AAD = header

The whole header (run, task, round, site, attempt, direction, artifact) is authenticated by every chunk: a stream of
another round, site or direction does not open. A cut at a chunk border shows, because the last chunk is marked.
Whoever opens writes to a temporary file and renames it after success: nothing is used before all of it is verified.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CHUNK = 1 << 20
TAG = 16
KEY = 32
SALT = 32
MAX_HEADER = 4096
_LENGTH = struct.Struct(">I")
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class SealBroken(ValueError):
    """What is wrong with a stream or a box, by `code`.

    header_differs      another run, task, round, site, attempt, direction or artifact
    header_unreadable   no header of ours
    truncated, too_long cut, or something was put behind it
    tag                 a chunk was changed or moved, or the key is another one
    box                 not for this key, or not for this purpose
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True)
class StreamHeader:
    """Who sends what to whom, and when in the run. Two streams never share a header but for a retry's attempt."""

    run_id: str
    task_id: str
    round: int
    site: str
    attempt: int
    direction: Literal["up", "down"]
    artifact: str

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()


def seal(key: bytes, header: StreamHeader, plaintext: Iterable[bytes], out: BinaryIO, *, salt: bytes) -> int:
    """Write a sealed stream; the number of bytes written. `salt`: 32 fresh random bytes.

    Memory is two chunks, whatever the length. Raises ValueError for a key, salt or header of the wrong size.
    """
    head = header.encode()
    if len(head) > MAX_HEADER:
        raise ValueError(f"a header of {len(head)} bytes is over the limit of {MAX_HEADER}")
    cipher = _cipher(key, salt, head)
    out.write(_LENGTH.pack(len(head)) + head + salt)
    written = _LENGTH.size + len(head) + SALT
    sealed = memoryview(bytearray(CHUNK + TAG))
    for i, (chunk, last) in enumerate(_chunks(plaintext)):
        size = cipher.encrypt_into(_nonce(i, last), chunk, head, sealed[: len(chunk) + TAG])
        out.write(sealed[:size])
        written += size
    return written


def open_sealed(key: bytes, expected: StreamHeader, source: BinaryIO, out: BinaryIO) -> int:
    """Write the plaintext to `out` and return its length. Raises SealBroken; then `out` must be thrown away."""
    head = expected.encode()
    announced = _read(source, _LENGTH.size)
    if len(announced) != _LENGTH.size:
        raise SealBroken("truncated", "the stream is shorter than a header")
    (length,) = _LENGTH.unpack(announced)
    if length > MAX_HEADER:
        raise SealBroken("header_unreadable", f"a header of {length} bytes")
    if _read(source, length) != head:
        raise SealBroken("header_differs", f"this is not the stream {head.decode()}")
    salt = _read(source, SALT)
    if len(salt) != SALT:
        raise SealBroken("truncated", "the stream ends inside its salt")
    cipher = _cipher(key, salt, head)
    plain = memoryview(bytearray(CHUNK))
    written = i = 0
    chunk = _read(source, CHUNK + TAG)
    while True:
        if len(chunk) < TAG:
            raise SealBroken("truncated", f"the stream ends before or inside chunk {i}")
        following = _read(source, CHUNK + TAG)
        last = not following
        size = len(chunk) - TAG
        try:
            cipher.decrypt_into(_nonce(i, last), chunk, head, plain[:size])
        except InvalidTag as error:
            raise _why_broken(cipher, chunk, i, last, head) from error
        out.write(plain[:size])
        written += size
        if last:
            return written
        chunk = following
        i += 1


def _why_broken(cipher: AESGCM, chunk: bytes, i: int, last: bool, head: bytes) -> SealBroken:
    """A chunk that opens with the other mark is whole; then it is the stream's end that was moved."""
    try:
        cipher.decrypt(_nonce(i, not last), chunk, head)
    except InvalidTag:
        return SealBroken("tag", f"chunk {i} is not what was sealed, or it is not where it was")
    if last:
        return SealBroken("truncated", f"the stream ends after chunk {i}, and more was sealed")
    return SealBroken("too_long", f"something follows chunk {i}, the last that was sealed")


def _cipher(key: bytes, salt: bytes, head: bytes) -> AESGCM:
    if len(salt) != SALT:
        raise ValueError(f"a salt has {SALT} bytes, not {len(salt)}")
    info = b"msfl/stream/v1|" + hashlib.sha256(head).digest()
    return AESGCM(HKDF(SHA256(), KEY, salt=salt, info=info).derive(_full(key)))


def _full(key: bytes) -> bytes:
    """HKDF takes any key, even an empty one; we do not."""
    if len(key) != KEY:
        raise ValueError(f"a key has {KEY} bytes, not {len(key)}")
    return key


def _nonce(i: int, last: bool) -> bytes:
    return b"\0" * 7 + _LENGTH.pack(i) + (b"\1" if last else b"\0")


def _read(source: BinaryIO, size: int) -> bytes:
    """`size` bytes, or fewer at the end only: unbuffered files and pipes may give less than was asked."""
    data = source.read(size)
    while data and len(data) < size and (more := source.read(size - len(data))):
        data += more
    return data


def _chunks(plaintext: Iterable[bytes]) -> Iterator[tuple[memoryview, bool]]:
    """Regroup into chunks of exactly CHUNK bytes; the last one, possibly empty, is marked.

    Each is a view of one buffer, valid until the next is asked for.
    """
    buffer = memoryview(bytearray(CHUNK))
    held = 0
    for piece in plaintext:
        rest = memoryview(piece)
        while rest:
            if held == CHUNK:
                yield buffer, False
                held = 0
            n = min(CHUNK - held, len(rest))
            buffer[held : held + n] = rest[:n]
            held += n
            rest = rest[n:]
    yield buffer[:held], True


# ------------------------------------------------------------------------ keys


def run_key(run_secret: bytes, site_key: bytes, run_id: str, site: str) -> bytes:
    """The key of one run at one site: from what only that gateway made, and what only site and keyring share."""
    info = _about(b"msfl/run-key/v1", run_id, site)
    return HKDF(SHA256(), KEY, salt=_full(site_key), info=info).derive(_full(run_secret))


def wrap_run_secret(centre_public: bytes, run_secret: bytes, run_id: str, site: str) -> bytes:
    return seal_to(centre_public, run_secret, _about(b"msfl/run-secret/v1", run_id, site))


def unwrap_run_secret(centre_private: bytes, wrapped: bytes, run_id: str, site: str) -> bytes:
    """Raises SealBroken: not for this key, run or site."""
    return open_with(centre_private, wrapped, _about(b"msfl/run-secret/v1", run_id, site))


def seal_to(public: bytes, plaintext: bytes, info: bytes) -> bytes:
    """A small box that only the holder of the X25519 key opens (HPKE base mode, RFC 9180). `info` is bound to it."""
    return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public), info=info)


def open_with(private: bytes, sealed: bytes, info: bytes) -> bytes:
    """Raises SealBroken."""
    try:
        return _SUITE.decrypt(sealed, X25519PrivateKey.from_private_bytes(private), info=info)
    except (InvalidTag, ValueError) as error:
        raise SealBroken("box", "the box was made for another key or purpose") from error


def _about(purpose: bytes, run_id: str, site: str) -> bytes:
    return b"|".join((purpose, run_id.encode(), site.encode()))
