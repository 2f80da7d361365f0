"""From where people may call: an address, judged against ranges; no I/O.

    peer is no named proxy ─▶ the peer's address counts, and what it says of others (forwarded headers) is not read
    peer is a named proxy  ─▶ `x-forwarded-for` from its end: the first address that is no named proxy counts

Each proxy adds whom it saw at the end, so what a caller wrote itself stands before that and is never reached. A list
that cannot be read is refused, not guessed at. An IPv4 address written inside IPv6 is the IPv4 address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from msfl.policies.refusals import Code, Refusal, refuse

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK = ("127.0.0.0/8", "::1/128")
FORWARDED = "x-forwarded-for"
MAX_HOPS = 32


@dataclass(frozen=True)
class Callers:
    """`allowed`: ranges that may call; `proxies`: addresses whose word on whom they forward counts."""

    allowed: tuple[Network, ...]
    proxies: tuple[Network, ...] = ()

    @classmethod
    def of(cls, allowed: Iterable[str], proxies: Iterable[str] = ()) -> Callers:
        """Raises ValueError: not a range (`10.20.0.0/16`, `2001:db8::/32`, one address)."""
        return cls(tuple(map(_network, allowed)), tuple(map(_network, proxies)))

    def check(self, peer: str, forwarded: Sequence[str]) -> Refusal | None:
        """`peer`: the address at the other end of the connection; `forwarded`: every value of the header, in order."""
        address = _address(peer)
        hops = [hop.strip() for value in forwarded for hop in value.split(",")][-MAX_HOPS:]
        while address is not None and hops and _within(address, self.proxies):
            address = _address(hops.pop())
        if address is None:
            return refuse(Code.ADDRESS_NOT_ALLOWED, f"{peer or 'The caller'} does not say readably for whom it calls.")
        if not _within(address, self.allowed):
            return refuse(Code.ADDRESS_NOT_ALLOWED, f"Nobody may call from {address}.", address=str(address))
        return None


def _network(text: str) -> Network:
    network = ipaddress.ip_network(text)
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")
    return network


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
