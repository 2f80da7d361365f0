"""Sealed streams: what travels between a site's gateway and the aggregator, readable by nobody in between.

    run secret (32 random bytes, made by the gateway)
      │ HPKE to the centre's public key, pinned by the registration token ─▶ `wrapped`, relayed by the orchestrator
      └ HKDF(secret, salt = the site's symmetric key, info = run, site)  ─▶ run key      both must be broken
    stream key = HKDF(run key, salt = 32 random bytes, info = "msfl/stream/v1|" + sha256(header))
    file       = u32 header length | header JSON | salt | chunks of ≤ 1 MiB ciphertext + 16-byte tag
    chunk i    : AES-256-GCM, nonce = 7 zero bytes | u32 i | last?  (STREAM, Hoang et al. 2015), AAD = header

The whole header (run, task, round, site, attempt, direction, artifact) is authenticated by every chunk: a stream of
another round, site or direction does not open. A cut at a chunk border shows, because the last chunk is marked.
Whoever opens throws away what it got when the end does not verify: nothing is used before all of it is verified.

What goes to every site (a round's model) is sealed once, under `broadcast_key`, with the site `ALL`. A site learns
that key, and the hash of the plaintext, from a small stream sealed for it alone (`msfl.protos.notes`): the hash keeps
another site, which knows the key too, from passing off something else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO, Literal, Protocol, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Buffer: TypeAlias = bytes | bytearray | memoryview
EVERYBODY = "ALL"  # where a header names a site: all of the run. No site's name has capitals.
MIN_SITES = f"{EVERYBODY}:min_sites"  # among the keys handed to an aggregator: not a key, but 4 bytes, a number
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
    header_too_long     the names of run and task are; nothing is sealed
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


class Sink(Protocol):
    """What a stream is written to: a file, or what looks at the bytes on their way to one."""

    def write(self, data: Buffer, /) -> object: ...


class Sealing:
    """A sealed stream that is being written. Memory is two chunks, whatever the length.

    `salt`: 32 fresh random bytes. Raises ValueError for a key or salt of the wrong size, SealBroken for a header.
    """

    def __init__(self, key: bytes, header: StreamHeader, out: Sink, *, salt: bytes) -> None:
        self._head = header.encode()
        if len(self._head) > MAX_HEADER:
            raise SealBroken("header_too_long", f"{len(self._head)} bytes are over the limit of {MAX_HEADER}")
        self._cipher = _cipher(key, salt, self._head)
        self._out = out
        self._plain = memoryview(bytearray(CHUNK))
        self._sealed = memoryview(bytearray(CHUNK + TAG))
        self._held = 0
        self._full: memoryview | None = None
        self._i = 0
        out.write(_LENGTH.pack(len(self._head)) + self._head + salt)
        self._written = _LENGTH.size + len(self._head) + SALT

    def write(self, piece: Buffer) -> None:
        """Chunks are of exactly CHUNK bytes, whatever the pieces; one is held back, because the last one is marked.

        A chunk that lies in a piece as a whole is not copied: `piece` must stay as it is until the call after this one.
        """
        rest = memoryview(piece).cast("B")
        while rest:
            if self._full is not None:
                self._put(self._full, last=False)
                self._full = None
            if not self._held and len(rest) >= CHUNK:
                self._full, rest = rest[:CHUNK], rest[CHUNK:]
                continue
            n = min(CHUNK - self._held, len(rest))
            self._plain[self._held : self._held + n] = rest[:n]
            self._held += n
            rest = rest[n:]
            if self._held == CHUNK:
                self._full, self._held = self._plain, 0

    def close(self) -> int:
        """The last chunk, possibly empty; the number of bytes of the whole stream."""
        self._put(self._plain[: self._held] if self._full is None else self._full, last=True)
        return self._written

    def _put(self, chunk: memoryview, *, last: bool) -> None:
        target = self._sealed[: len(chunk) + TAG]
        self._cipher.encrypt_into(_nonce(self._i, last), chunk, self._head, target)
        self._out.write(target)
        self._written += len(target)
        self._i += 1


class Opening:
    """A sealed stream that is being read, in pieces of any size as they arrive.

    `take` gets each chunk of plaintext once it is authenticated, as a view that is valid until the next but one. What
    it got is the stream's beginning; that the stream is whole shows in `close`. A chunk that lies in a piece as a whole
    is not copied: a piece must stay as it is until the call after its own. Raises SealBroken.
    """

    def __init__(self, key: bytes, expected: StreamHeader, take: Callable[[memoryview], object]) -> None:
        self._key = key
        self._head = expected.encode()
        self._take = take
        self._cipher: AESGCM | None = None
        self._beginning = bytearray()
        self._chunk = memoryview(bytearray(CHUNK + TAG))
        self._plain = (memoryview(bytearray(CHUNK)), memoryview(bytearray(CHUNK)))
        self._held = 0
        self._full: memoryview | None = None
        self._i = 0
        self._written = 0

    def feed(self, piece: Buffer) -> None:
        rest = memoryview(piece).cast("B")
        if self._cipher is None:
            rest = self._begin(rest)
        while rest:
            if self._full is not None:
                self._open(self._full, last=False)
                self._full = None
            if not self._held and len(rest) >= CHUNK + TAG:
                self._full, rest = rest[: CHUNK + TAG], rest[CHUNK + TAG :]
                continue
            n = min(CHUNK + TAG - self._held, len(rest))
            self._chunk[self._held : self._held + n] = rest[:n]
            self._held += n
            rest = rest[n:]
            if self._held == CHUNK + TAG:
                self._full, self._held = self._chunk, 0

    def close(self) -> int:
        """The length of the plaintext. Only now is the stream known to be whole."""
        if self._cipher is None:
            raise SealBroken("truncated", "the stream ends inside its header or salt")
        self._open(self._chunk[: self._held] if self._full is None else self._full, last=True)
        return self._written

    def _begin(self, piece: memoryview) -> memoryview:
        """Collects header and salt; what lies behind them."""
        self._beginning += piece[: _LENGTH.size + MAX_HEADER + SALT]
        if len(self._beginning) < _LENGTH.size:
            return piece[len(piece) :]
        (length,) = _LENGTH.unpack_from(self._beginning)
        if length > MAX_HEADER:
            raise SealBroken("header_unreadable", f"a header of {length} bytes")
        begins = _LENGTH.size + length + SALT
        if len(self._beginning) < begins:
            return piece[len(piece) :]
        if self._beginning[_LENGTH.size : _LENGTH.size + length] != self._head:
            raise SealBroken("header_differs", f"this is not the stream {self._head.decode()}")
        self._cipher = _cipher(self._key, bytes(self._beginning[begins - SALT : begins]), self._head)
        # Of this piece, what came after the salt; `_beginning` holds no more of it than that and a little.
        seen_before = len(self._beginning) - min(len(piece), _LENGTH.size + MAX_HEADER + SALT)
        self._beginning = bytearray()
        return piece[begins - seen_before :]

    def _open(self, chunk: memoryview, *, last: bool) -> None:
        assert self._cipher is not None
        if len(chunk) < TAG:
            raise SealBroken("truncated", f"the stream ends before or inside chunk {self._i}")
        plain = self._plain[self._i % 2][: len(chunk) - TAG]
        try:
            self._cipher.decrypt_into(_nonce(self._i, last), chunk, self._head, plain)
        except InvalidTag as error:
            raise _why_broken(self._cipher, bytes(chunk), self._i, last, self._head) from error
        self._take(plain)
        self._written += len(plain)
        self._i += 1


def seal(key: bytes, header: StreamHeader, plaintext: Iterable[Buffer], out: BinaryIO, *, salt: bytes) -> int:
    """Write a whole sealed stream; the number of bytes written. As `Sealing`."""
    sealing = Sealing(key, header, out, salt=salt)
    for piece in plaintext:
        sealing.write(piece)
    return sealing.close()


def open_sealed(key: bytes, expected: StreamHeader, source: BinaryIO, out: BinaryIO) -> int:
    """Write the plaintext to `out` and return its length. Raises SealBroken; then `out` must be thrown away."""
    opening = Opening(key, expected, out.write)
    for piece in _pieces(source):
        opening.feed(piece)
    return opening.close()


def opened_chunks(key: bytes, expected: StreamHeader, source: BinaryIO) -> Iterator[memoryview]:
    """The plaintext chunk by chunk, each authenticated, valid until the next but one is asked for. Raises SealBroken;
    that the stream is whole is known only when the iterator has ended."""
    ready: list[memoryview] = []
    opening = Opening(key, expected, ready.append)
    # A piece is at most a chunk, so it completes at most one: no view is overwritten before it was handed out.
    for piece in _pieces(source):
        opening.feed(piece)
        if ready:
            yield ready.pop()
    opening.close()
    yield ready.pop()


def _pieces(source: BinaryIO) -> Iterator[Buffer]:
    """As `parts`, each in memory that is used again for the next but one."""
    prologue = source.read(_LENGTH.size)
    yield prologue + source.read(_prologue(prologue) - len(prologue))
    buffers = itertools.cycle([memoryview(bytearray(CHUNK + TAG)), memoryview(bytearray(CHUNK + TAG))])
    # Every binary file has `readinto`; typeshed's base has not.
    while n := source.readinto(buffer := next(buffers)):  # type: ignore[attr-defined]
        yield buffer[:n]


def parts(sealed: BinaryIO, offset: int) -> Iterator[bytes]:
    """A sealed file from `offset` on as it goes over the wire: cut where its chunks end, so that whoever opens it on
    its way need not put them together. `sealed` is an unbuffered file; that it is sealed is not checked."""
    begins = _prologue(sealed.read(_LENGTH.size))
    sealed.seek(offset)
    while data := sealed.read(begins - offset if offset < begins else CHUNK + TAG - (offset - begins) % (CHUNK + TAG)):
        yield data
        offset += len(data)


def _prologue(beginning: bytes) -> int:
    """How long length, header and salt together are, as the length says; nothing is known to be true of it."""
    length = _LENGTH.unpack(beginning)[0] if len(beginning) == _LENGTH.size else 0
    return int(_LENGTH.size + min(length, MAX_HEADER) + SALT)


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


# ------------------------------------------------------------------------ keys


def run_key(run_secret: bytes, site_key: bytes, run_id: str, site: str) -> bytes:
    """The key of one run at one site: from what only that gateway made, and what only site and keyring share."""
    info = _about(b"msfl/run-key/v1", run_id, site)
    return HKDF(SHA256(), KEY, salt=_full(site_key), info=info).derive(_full(run_secret))


def centre_key(centre_private: bytes, run_id: str) -> bytes:
    """The key of what the centre keeps of one run. The keyring can derive it at any time; nobody else can."""
    info = b"msfl/centre-run-key/v1|" + run_id.encode()
    return HKDF(SHA256(), KEY, salt=None, info=info).derive(_full(centre_private))


def broadcast_key(run_centre_key: bytes, header: StreamHeader) -> bytes:
    """The key of one stream that is sealed once for all sites of a run; each learns it through a note of its own."""
    info = b"msfl/broadcast/v1|" + hashlib.sha256(header.encode()).digest()
    return HKDF(SHA256(), KEY, salt=None, info=info).derive(_full(run_centre_key))


def wrap_run_secret(
    centre_public: bytes, run_secret: bytes, run_id: str, site: str, site_key: bytes, min_sites: int = 0
) -> bytes:
    """The box says which of the site's symmetric keys the run's key is made with, and of how many sites, by the signed
    job, a sum must be made; 0: it does not say, as boxes of gateways before this did not."""
    return seal_to(centre_public, run_secret, _about_secret(run_id, site, site_key, min_sites))


def unwrap_run_secret(
    centre_private: bytes, wrapped: bytes, run_id: str, site: str, site_key: bytes, min_sites: int = 0
) -> bytes:
    """Raises SealBroken: not for this key, run, site, symmetric key, or number of sites."""
    return open_with(centre_private, wrapped, _about_secret(run_id, site, site_key, min_sites))


def _about_secret(run_id: str, site: str, site_key: bytes, min_sites: int) -> bytes:
    key_id = hashlib.sha256(b"msfl/site-key/v1|" + _full(site_key)).digest()
    least = f"|min_sites={min_sites}".encode() if min_sites else b""
    return _about(b"msfl/run-secret/v2", run_id, site) + b"|" + key_id + least


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
