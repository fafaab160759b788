"""Connections to public addresses only, and never longer than agreed."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore

from ..models.errors import RestillError
from .decode import UnreadableFile

Network = IPv4Network | IPv6Network
_NAT64 = ip_network("64:ff9b::/96")


def networks(addresses: Iterable[str]) -> tuple[Network, ...]:
    """Parse addresses and networks like ``10.0.0.0/8``.

    Raises:
        RestillError: one is neither; host names are none, for they can point anywhere.
    """
    try:
        return tuple(ip_network(address) for address in addresses)
    except ValueError as error:
        raise RestillError(f"allowed addresses: {error}; give IP addresses or networks like 10.0.0.0/8") from error


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """True for an address of the open internet: not private, loopback, link-local, multicast or reserved.

    An IPv6 address that stands for an IPv4 address (mapped, 6to4, Teredo, NAT64) is judged by that one too.
    """
    if isinstance(address, IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        translated = address in _NAT64
        if translated:
            inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
        if address.is_site_local or not all(is_public(one) for one in inner if one is not None):
            return False
        if translated or address.ipv4_mapped is not None:
            return True  # nothing but the IPv4 address; ipaddress calls these blocks reserved
    local = address.is_private or address.is_loopback or address.is_link_local or address.is_unspecified
    return address.is_global and not (local or address.is_multicast or address.is_reserved)


def checked_addresses(host: str, port: int, allowed: Sequence[Network]) -> list[str]:
    """The addresses of ``host``, all of them public or allowed, in the resolver's order.

    One that is neither refuses the host, so that a name cannot mix good addresses with bad ones.

    Raises:
        UnreadableFile: the name is unknown, or an address is refused.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UnreadableFile(f"the host {host!r} cannot be resolved ({error})") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        address = ip_address(text)
        if not is_public(address) and not any(address in network for network in allowed):
            raise UnreadableFile(
                f"the host {host!r} has the address {text}, which is not public; name it in "
                "WebOptions(allow=...) if it is meant"
            )
    return addresses


class CheckedBackend(httpcore.NetworkBackend):
    """Connects to the very addresses that were checked, so that a second look-up cannot give another.

    Args:
        allowed: networks that may be reached although they are not public.
        deadline: ``time.monotonic()`` after which nothing is waited for any more, not even a slow trickle.
    """

    def __init__(self, allowed: Sequence[Network], deadline: float) -> None:
        self._inner = httpcore.SyncBackend()
        self._allowed, self._deadline = allowed, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve, check, connect to the first address that answers."""
        refused: Exception = httpcore.ConnectError(f"{host!r} has no address")
        for address in checked_addresses(host, port, self._allowed):
            try:
                wait = remaining(self._deadline, timeout)
                stream = self._inner.connect_tcp(address, port, wait, local_address, socket_options)
                return _TimedStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                refused = error
        raise refused

    def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Any = None) -> Any:
        """Refuse: no URL means one."""
        raise UnreadableFile(f"{path}: a socket file is no host")


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every wait ends at the deadline."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most so many bytes, in time."""
        return self._inner.read(max_bytes, remaining(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of ``buffer``, in time."""
        self._inner.write(buffer, remaining(self._deadline, timeout))

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same connection, encrypted, under the same deadline."""
        wait = remaining(self._deadline, timeout)
        return _TimedStream(self._inner.start_tls(ssl_context, server_hostname, wait), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """What the stream below knows of itself."""
        return self._inner.get_extra_info(info)


def remaining(deadline: float, timeout: float | None) -> float:
    """Seconds to wait at most.

    Raises:
        httpcore.ReadTimeout: the deadline has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time for this page is over")
    return left if timeout is None else min(left, timeout)
