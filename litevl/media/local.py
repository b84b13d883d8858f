"""file:// URLs -> bytes, from the one folder that the operator opened.

`loader.py` calls `LocalFiles.read` in a thread. Neither `..` nor a link leads out of the folder,
and nothing tells what exists elsewhere; who can write into it is trusted. Knows no decoding.
"""

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from litevl.errors import MediaError, UnavailableError
from litevl.machine import is_out_of_files
from litevl.media.sources import HEAD, check_size, empty_error, sniff
from litevl.sequence import MediaRef


def is_file_url(url: str) -> bool:
    return url[:7].lower() == "file://"


class LocalFiles:
    """The files of one folder; without one, every URL is refused."""

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder).resolve() if folder else None
        self._spelled = Path(folder).absolute() if folder else None  # perhaps a link to it

    def read(self, ref: MediaRef) -> bytes:
        """All of a file. `MediaError` invalid_*_url wherever it is not a readable file of the
        folder, and those of `sniff` and `check_size`."""
        try:
            descriptor = self._open(ref.url)
        except (OSError, ValueError, RuntimeError) as error:  # the last: links in a circle
            if is_out_of_files(error):
                raise UnavailableError("Too many files are open; try again later.") from None
            raise _refused(ref) from None
        with open(descriptor, "rb") as file:
            head = file.read(HEAD)
            if not head:
                raise empty_error(ref)
            size = os.fstat(descriptor).st_size
            check_size(size, sniff(head, ref.param).kind, ref.param)
            return head + file.read(size - len(head))

    def _open(self, url: str) -> int:
        """A descriptor of a regular file inside the folder; ValueError or OSError if it is none."""
        parts = urlsplit(url)
        if self._folder is None or parts.netloc not in ("", "localhost"):
            raise ValueError
        # `..` by the letter first: a way through elsewhere would tell what exists there.
        spelled = Path(os.path.normpath(unquote(parts.path)))
        if not any(spelled.is_relative_to(each) for each in (self._folder, self._spelled) if each):
            raise ValueError
        path = spelled.resolve(strict=True)
        if not path.is_relative_to(self._folder):
            raise ValueError
        # Not blocking: a pipe in the folder must not hold the thread.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise ValueError


def _refused(ref: MediaRef) -> MediaError:
    return MediaError(
        ref.param,
        "this server opens no such file: send a data: URL"
        " (--allowed-local-media-path opens a folder)",
        code=f"invalid_{ref.declared}_url",
    )
