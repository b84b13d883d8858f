"""Settings that every test shares: no hub is asked, no example is timed, async means asyncio."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from live import KEY, OTHER_KEY, LiveServer, serve

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is first imported

settings.register_profile("litevl", deadline=None, print_blob=True)
settings.load_profile("litevl")


@pytest.fixture
def anyio_backend() -> str:
    """What `@pytest.mark.anyio` runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """`litevl serve` with the demo model, a key, and loopback open for media."""
    folder = tmp_path_factory.mktemp("state")
    with serve(
        "--media-networks", "127.0.0.0/8", folder=folder, LITEVL_API_KEY=f"{KEY},{OTHER_KEY}"
    ) as live:
        yield live
