"""Which addresses this machine may connect to: those of the public internet, and private ones that are listed.

A name is never judged, only the very address that a socket is about to be connected to. So a name that resolves
differently the second time, a redirect, and other spellings (`[::ffff:10.0.0.1]`, `localhost.`) need no rules of their
own. Numbers that are no address to Python, but to some resolvers (`127.1`, `0x7f000001`), are refused as they stand.
"""

import re
import socket
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from .failures import AddressRefused

MAX_URL = 8_000  # characters

_NEVER_IN_A_URL = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
_NUMBER_AT_THE_END = re.compile(r"(?:^|\.)(?:\d+|0[xX][0-9a-fA-F]*)$")
_PORTS = {"http": 80, "https": 443}
_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")  # an IPv4 address in the last 32 bits


class Guard:
    """`allowed`: networks or addresses, by commas: "10.1.0.0/16, 127.0.0.1". Raises ValueError for anything else."""

    def __init__(self, allowed: str = "") -> None:
        entries = (entry.strip() for entry in allowed.split(","))
        self._allowed = [ip_network(entry, strict=False) for entry in entries if entry]

    def allows(self, address: str) -> bool:
        """Whether an address, as `getaddrinfo` gives it, may be connected to. A zone (`%eth0`) says nothing."""
        ip = _unwrapped(ip_address(address.partition("%")[0]))
        return any(ip in network for network in self._allowed) or _is_public(ip)

    def addresses(self, host: str, port: int) -> list[str]:
        """Of a host, those that may be connected to. Raises socket.gaierror, and AddressRefused when there is none."""
        found = [answer[4][0] for answer in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        allowed = [address for address in found if self.allows(address)]
        if not allowed:
            raise AddressRefused
        return allowed


def check(url: str) -> None:
    """Raises AddressRefused for what will not be asked wherever it leads: only http and https, and nobody signs in."""
    origin(url)


def origin(url: str) -> str:
    """`https://example.com:8443`: lower case, the port only where it is unusual. Raises as `check`."""
    if len(url) > MAX_URL or _NEVER_IN_A_URL.search(url):
        raise AddressRefused
    try:
        parts = urlsplit(url)
        return _origin(parts.scheme, parts.netloc)
    except ValueError:
        raise AddressRefused from None


@lru_cache(1000)
def _origin(scheme: str, netloc: str) -> str:
    parts = SplitResult(scheme, netloc, "", "", "")
    host, port = (parts.hostname or "").rstrip("."), parts.port
    if scheme not in _PORTS or not host or port == 0 or "@" in netloc:
        raise ValueError(netloc)
    if ":" in host:
        host = f"[{host}]"
    elif _NUMBER_AT_THE_END.search(host):
        IPv4Address(host)
    return f"{scheme}://{host}" + ("" if port in (None, _PORTS[scheme]) else f":{port}")


def _unwrapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address) and ip not in _GLOBAL_UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
