"""A real `litevl serve` in a process of its own, as an operator starts it.

Used by the end-to-end tests. Waiting means reading what the server prints until it is ready.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

KEY = "sk-litevl-test-key"
OTHER_KEY = "sk-litevl-other-key"
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class LiveServer:
    """A server that is ready."""

    process: subprocess.Popen[str]
    banner: str
    port: int
    later: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        scheme = "https" if "https://" in self.banner else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "litevl", "serve", *arguments]


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """A user's environment with a home of its own, without the caller's settings."""
    kept = {
        name: text for name, text in os.environ.items() if not name.startswith(("LITEVL", "VLLM"))
    }
    own = {"XDG_STATE_HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return kept | own | changes


@contextmanager
def serve(
    *arguments: str, folder: Path, shell: str = 'exec "$@"', **changes: str
) -> Iterator[LiveServer]:
    """Start `litevl serve ARGUMENTS` on a free port, by a line of shell; yield it when ready, end
    it by SIGTERM."""
    process = subprocess.Popen(
        ["sh", "-c", shell, "sh", *command("--port", "0", *arguments)],
        env=environment(folder, **changes),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        banner = _read_banner(process.stdout)
        lines: list[str] = []
        reader = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
        reader.start()
        yield LiveServer(process, banner, _port(banner))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    reader.join()
    process.stdout.close()
    assert not [line for line in lines if KEY in line or ";base64," in line]
    assert process.returncode == 0  # it drained, and nothing hung


def _read_banner(output: IO[str]) -> str:
    lines = []
    for line in output:
        lines.append(line)
        if " -d @" in line:
            return "".join(lines)
    raise AssertionError(f"the server ended before it was ready:\n{''.join(lines)}")


def _port(banner: str) -> int:
    line = next(line for line in banner.splitlines() if line.strip().startswith("local"))
    return int(line.rsplit(":", 1)[1].removesuffix("/v1"))
