"""How the server's log lines look: text for people, JSON for machines, one line a record.

`serve.py` calls `configure` once. A line break inside a message is written as an escape, so nobody
can forge a line. Knows nothing of what is logged.
"""

import json
import logging
import sys
import time
from typing import Literal

LogFormat = Literal["text", "json"]

# What a record may carry in `extra`:
FIELDS = "fields"  # its own numbers, a dictionary of JSON values
FRAMES = "frames"  # where in the code it came about, lines of text


def configure(log_format: LogFormat) -> None:
    """Send litevl's records from INFO up to stderr in this format, and others' warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("litevl").setLevel(logging.INFO)
    # It warns of what callers ask: a rate beyond their clip's own, say.
    logging.getLogger("qwen_vl_utils").setLevel(logging.ERROR)


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
