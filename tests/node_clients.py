"""Runs Node's clients in `tests/clients` against a live server of its own: `make test-clients`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from live import KEY, ROOT, serve

CLIENTS = ROOT / "tests" / "clients"


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(folder=Path(folder), LITEVL_API_KEY=KEY) as server,
    ):
        asked = {"BASE_URL": server.base_url, "API_KEY": KEY, "MODEL": "litevl-demo"}
        command = ["node", "--test", "--test-reporter=spec"]
        return subprocess.run(command, cwd=CLIENTS, env=os.environ | asked, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
