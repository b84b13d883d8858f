"""How the server's log lines look: text for people, JSON for machines, one line a record.

`serve.py` calls `configure` once. A line break inside a message is written as an escape, so nobody
can forge a line; they are written in a thread of their own, so nobody waits for who reads them.
Knows nothing of what is logged.
"""

import json
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from logging.handlers import QueueHandler
from queue import Full, Queue
from select import select
from typing import Any, Literal

LogFormat = Literal["text", "json"]

STDERR = 2  # what is closed at the start has become the null device (`cli.py`)
WAITING = 10_000  # records that may wait to be written
PATIENCE_S = 2.0  # at the end of the process, for those that still do

# What a record may carry in `extra`:
FIELDS = "fields"  # its own numbers, a dictionary of JSON values
FRAMES = "frames"  # where in the code it came about, lines of text


def configure(log_format: LogFormat) -> "Writer":
    """Send litevl's records from INFO up to stderr in this format, and others' warnings. The way
    there, for what else is to be said."""
    handler = Writer(STDERR, sys.stderr.encoding)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("litevl").setLevel(logging.INFO)
    # It warns of what callers ask: a rate beyond their clip's own, say.
    logging.getLogger("qwen_vl_utils").setLevel(logging.ERROR)
    return handler


class Writer(QueueHandler):
    """Writes to a file, pipe or terminal in a thread of its own.

    One that takes nothing (a pipe that nobody reads, a terminal on hold) would stop whoever logs,
    the event loop first. What cannot wait any more is dropped, and the next record says so.
    """

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._waiting: Queue[str] = Queue(WAITING)
        super().__init__(self._waiting)
        self._descriptor = descriptor
        self._encoding = encoding
        self._num_dropped = 0
        threading.Thread(target=self._write, name="litevl-log", daemon=True).start()

    def prepare(self, record: logging.LogRecord) -> str:
        records = [_dropped(self._num_dropped)] if self._num_dropped else []
        return "".join(f"{self.format(each)}\n" for each in (*records, record))

    def enqueue(self, record: Any) -> None:
        try:
            self._waiting.put_nowait(record)
            self._num_dropped = 0
        except Full:
            self._num_dropped += 1

    def write(self, text: str) -> None:
        """Text that is no record, in its turn; it is dropped where it would have to wait long."""
        with suppress(Full):
            self._waiting.put_nowait(text)

    def flush(self) -> None:
        """Wait until all is written, but not for ever: called by `logging.shutdown`."""
        with self._waiting.all_tasks_done:
            self._waiting.all_tasks_done.wait_for(
                lambda: not self._waiting.unfinished_tasks, PATIENCE_S
            )

    def _write(self) -> None:
        # Not by `sys.stderr`, whose lock would be held while the process ends.
        while True:
            left = self._waiting.get().encode(self._encoding, errors="backslashreplace")
            with suppress(OSError):  # a full disk may have room for the next
                while left:
                    try:
                        left = left[os.write(self._descriptor, left) :]
                    except BlockingIOError:  # somebody who shares it has made it so
                        select([], [self._descriptor], [])
            self._waiting.task_done()


def _dropped(count: int) -> logging.LogRecord:
    told = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
    return logging.makeLogRecord(told | {"msg": "%d records were dropped", "args": (count,)})


class TextFormatter(logging.Formatter):
    """Time, level, logger, message; frames and tracebacks follow on lines of their own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _one_line(record.message)
        frames = getattr(record, FRAMES, "")
        return super().formatMessage(record) + (f"\n{frames.rstrip()}" if frames else "")


class JsonFormatter(logging.Formatter):
    """One object a record: time, level, logger, message, the record's fields and frames."""

    def format(self, record: logging.LogRecord) -> str:
        milliseconds = f"{record.msecs:03.0f}"
        told: dict[str, object] = {
            "time": time.strftime(
                f"%Y-%m-%dT%H:%M:%S.{milliseconds}Z", time.gmtime(record.created)
            ),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            told[FRAMES] = self.formatException(record.exc_info)
        elif frames := getattr(record, FRAMES, ""):
            told[FRAMES] = frames
        return json.dumps(told, ensure_ascii=True, default=str)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
