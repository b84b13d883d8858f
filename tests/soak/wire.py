"""One request on a connection of its own, by hand: whole, slow, or broken off wherever one likes.

Used by `clients.py`. A client library would be kinder than the clients of a soak may be.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

KEY = "sk-litevl-soak-key"
PATIENCE = 300.0  # seconds for an answer


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        return value if isinstance(value, dict) else {}

    @property
    def code(self) -> object:
        error = self.json().get("error")
        return error.get("code") if isinstance(error, dict) else None


def request(
    body: object, *, path: str = "/v1/chat/completions", key: str = KEY, method: str = "POST"
) -> bytes:
    """A request as it goes over the wire; a body that is bytes goes as it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: soak\r\nconnection: close\r\nx-api-key: {key}\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


async def connect(
    port: int, *, small: bool = False
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection; a small one takes in next to nothing of what is not read."""
    connection = socket.socket()
    connection.setblocking(False)
    if small:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=connection, limit=2048 if small else 2**16)


async def ask(port: int, sent: bytes) -> Answer:
    """Send everything, read everything."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await connect(port)
        try:
            writer.write(sent)
            with contextlib.suppress(ConnectionError):  # refused early: the answer tells why
                await writer.drain()
            return parse(await reader.read(-1))
        finally:
            writer.close()


def leave(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Hang up politely, or as a client whose machine has gone."""
    connection = writer.get_extra_info("socket")
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def parse(data: bytes) -> Answer:
    """Status and body, of chunks joined."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    status = int(lines[0].split(" ")[1]) if lines[0].startswith("HTTP/") else 0
    return Answer(status, _joined(body) if _is_chunked(headers) else body)


def _is_chunked(headers: Mapping[str, str]) -> bool:
    return headers.get("transfer-encoding") == "chunked"


def _joined(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        parts.append(body[:length])
        body = body[length + 2 :]
    return b"".join(parts)
