"""Where the server can be reached: from this machine, from others, and from afar.

Told by `banner.py` on the terminal and by `api/status.py` to the page. Knows the config alone.
"""

import ipaddress
import socket
from dataclasses import dataclass

from litevl.config import Config

UNSPECIFIED = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Each is an origin, to which `/v1` is added."""

    local: str
    network: str | None  # None: only this machine reaches it
    public: str | None  # what `--public-url` says


def addresses(config: Config, port: int) -> Addresses:
    """`port` is the one that was bound: `--port 0` lets the system choose."""
    scheme = "https" if config.ssl_certfile else "http"
    is_everywhere = config.host in UNSPECIFIED
    local = "127.0.0.1" if is_everywhere else config.host
    network = None
    if not is_loopback(config.host):
        host = _lan_address() if is_everywhere else config.host
        network = f"{scheme}://{_bracketed(host)}:{port}"
    return Addresses(
        local=f"{scheme}://{_bracketed(local)}:{port}",
        network=network,
        public=config.public_url,
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _lan_address() -> str:
    """The address that other machines would use: the routing table is asked, nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])
