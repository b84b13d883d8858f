"""Features of the vision tower, from the step that encodes an item to the one that passes it.

Generic in what a feature is, so that the scheduler, which decides what is held, needs no torch.
Filled by `runner.py`, emptied by `scheduler.py`.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

from litevl.sequence import MediaItem

Feature = TypeVar("Feature")


class EncoderCache(Generic[Feature]):
    """Features by media item."""

    def __init__(self) -> None:
        self._features: dict[MediaItem, Feature] = {}

    def __contains__(self, item: MediaItem) -> bool:
        return item in self._features

    def __len__(self) -> int:
        return len(self._features)

    def put(self, item: MediaItem, feature: Feature) -> None:
        self._features[item] = feature

    def get(self, item: MediaItem) -> Feature:
        return self._features[item]

    def drop(self, items: Iterable[MediaItem]) -> None:
        """Forget items; those never encoded are ignored."""
        for item in items:
            self._features.pop(item, None)
