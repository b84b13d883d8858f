"""How the engine is: what it answers when asked by anybody, at any time.

The engine tells (`engine/engine.py`); `/health`, `/metrics` and `/v1/status` show it.
"""

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STALLED = "stalled"  # nothing has moved for long
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What the engine holds now, and what it has counted since its start."""

    num_running: int  # sequences
    num_waiting: int
    num_blocks: int  # of the KV cache
    kv_usage: float  # the share of these that sequences hold, from 0 to 1
    block_size: int  # tokens
    num_preemptions: int
    prefix_queries: int  # prompt tokens
    prefix_hits: int  # of these, found in the prefix cache
    encoder_hits: int  # pictures and clips whose features were there
    num_divided: int  # steps that failed, and were repeated in halves
    num_leaked: int  # blocks, features and places that were still held when nothing ran
