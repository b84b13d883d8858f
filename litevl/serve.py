"""`litevl serve`: a socket that answers at once, and the model that loads beside it.

`cli.py` calls `serve` and hands in how a model is loaded. Knows the server and the terminal, no
model.
"""

import errno
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable

from litevl.api.ports import Backend
from litevl.api.service import Service
from litevl.api.serving import Listener, Server, raise_file_limit
from litevl.api.wire import Limits
from litevl.banner import banner, load_keys
from litevl.config import Config
from litevl.errors import ConfigError
from litevl.logs import Writer, configure
from litevl.progress import Progress, Report
from litevl.sequence import ModelCard

logger = logging.getLogger("litevl")

# The backend, and what the banner says of it.
Load = Callable[[Config, Report], tuple[Backend, dict[str, str]]]


def serve(config: Config, load: Load) -> int:
    """Listen, load, answer until told to stop; returns the exit code."""
    log = configure(config.log_format)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns of each bad request
    config = load_keys(config)
    service = Service(config)
    server = Server(config, service, raise_file_limit(Limits()))
    listener = _listen(config)
    listener.note = server.note
    loading = _Loading(load, service, server, config, listener.getsockname()[1], log)
    loading.start()
    server.run(sockets=[listener])
    return 1 if loading.has_failed else server.exit_code


def _listen(config: Config) -> Listener:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = Listener(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(_why_not(config, error)) from None
    return listener


def _why_not(config: Config, error: OSError) -> str:
    where = f"cannot listen on {config.host}:{config.port}: {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        return f"{where}; another server is there: stop it, or choose another --port"
    if error.errno == errno.EACCES:
        return f"{where}; ports below 1024 are root's: choose another --port"
    return f"{where}; --host must be an address of this machine, such as 127.0.0.1 or 0.0.0.0"


class _Loading(threading.Thread):
    """Loads the model beside the server that already listens."""

    def __init__(
        self,
        load: Load,
        service: Service,
        server: Server,
        config: Config,
        port: int,
        log: Writer,
    ) -> None:
        super().__init__(name="litevl-loading", daemon=True)
        self.has_failed = False
        self._load, self._service, self._server = load, service, server
        self._config, self._port = config, port
        self._log = log
        self._progress = Progress(log.write)

    def run(self) -> None:
        try:
            card, summary = self._open_doors()
        except ConfigError as error:
            self._fail(str(error))
        except Exception as error:
            # Our bug, or the machine's: the origin is worth more than one line.
            self._progress.end()
            logger.exception("loading failed")
            self._fail(f"loading failed: {type(error).__name__}: {error}")
        else:
            self._tell(card, summary)

    def _open_doors(self) -> tuple[ModelCard, dict[str, str]]:
        """Load the model and let requests in."""
        config, progress = self._config, self._progress
        progress.say(f"listening on {config.host}:{self._port}, loading {config.model}")
        progress.report("starting")  # importing torch takes seconds
        backend, summary = self._load(config, self._report)
        gc.collect()
        gc.freeze()  # it stays: a collection that walked it would stop everybody for 0.2 s
        self._service.attach(backend)
        progress.end()
        return backend.card, summary

    def _report(self, phase: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        self._service.report(phase, done, total)
        self._progress.report(phase, done, total, unit)

    def _fail(self, reason: str) -> None:
        self.has_failed = True
        self._progress.say(reason)  # before the end, which takes this thread with it
        self._server.should_exit = True

    def _tell(self, card: ModelCard, summary: dict[str, str]) -> None:
        """The banner. A start is good without it too."""
        self._log.flush()  # the banner goes another way
        tells_key = sys.stdout.isatty()
        try:
            print(banner(self._config, self._port, card, summary, tells_key=tells_key), flush=True)
        except OSError as error:
            # What could not be written is tried again when the process ends, which would fail it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            logger.warning("serving, but stdout takes no banner: %s", error.strerror)
