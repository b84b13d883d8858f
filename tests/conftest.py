"""Settings that every test shares: no hub is asked, no example is timed, async means asyncio."""

import os

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is first imported

settings.register_profile("litevl", deadline=None, print_blob=True)
settings.load_profile("litevl")


@pytest.fixture
def anyio_backend() -> str:
    """What `@pytest.mark.anyio` runs on."""
    return "asyncio"
