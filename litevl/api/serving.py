"""uvicorn as litevl runs it: guarded connections, and an end that lets answers finish.

`serve.py` makes one `Server` and runs it in the main thread. Knows the service's state and
uvicorn's tasks, no routes.
"""

import logging
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from io import FileIO
from types import FrameType
from typing import Any

import uvicorn

from litevl.api.app import create_app
from litevl.api.bodies import bytes_that_fit
from litevl.api.records import Records
from litevl.api.service import Service
from litevl.api.wire import GuardedProtocol, Limits
from litevl.config import Config
from litevl.errors import ConfigError
from litevl.health import Health
from litevl.machine import is_out_of_files
from litevl.media.budgets import BytesInFlight

logger = logging.getLogger("litevl.api")

DRAIN_S = 30.0  # for what runs when the first signal comes
CLOSE_S = 2  # then, for bodies and prompts that are not ready, and answers that nobody reads
GONE_S = 34  # after the first signal the process is no more, whatever hangs: supervisors kill at 35
RED_S = 2.0  # a dead engine shows /health red and tells its requests; then the process ends
RED_GONE_S = 3  # and is no more after that
STUCK_S = 60.0  # a stalled engine shows it, and may still come back; then the process ends
FILES_BESIDE = 512  # open files that are no connections: weights, children's pipes, downloads


class Server(uvicorn.Server):
    """The first SIGTERM, SIGINT or SIGHUP drains, with `/health` answering `draining`; a second one
    ends the process at once. An engine that is dead or stuck ends it too: a supervisor starts
    another.
    """

    def __init__(self, config: Config, service: Service, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.budget = BytesInFlight(bytes_that_fit(config.max_body_size), "requests")
        self._service = service
        self._drained_at: float | None = None  # when patience ends
        records = Records()
        self.note = records.note_connection
        self._unwell_since: float | None = None
        self.exit_code = 0
        protocol: Any = partial(  # uvicorn's types ask for a class
            GuardedProtocol,
            limits=limits,
            tls=load_certificate(config),
            note=self.note,
        )
        super().__init__(
            uvicorn.Config(
                create_app(config, service, self.budget, records),
                http=protocol,  # not httptools, which refuses `-X Post`
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nobody asks where a client is
                timeout_graceful_shutdown=CLOSE_S,
                timeout_keep_alive=limits.idle_s,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to leave."""
        is_free = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL  # not under nohup
        if is_free and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, self.handle_exit)  # the terminal closes
        super().run(sockets)

    def drain(self) -> None:
        """Take nothing new; end when what runs is done, or is told after `DRAIN_S` that it will not
        be. uvicorn cancels what then takes longer than `CLOSE_S`."""
        self._service.drain()
        self._drained_at = time.monotonic() + DRAIN_S

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn's signal handlers, in the main thread."""
        if self._drained_at is not None:
            os._exit(128 + sig)  # decoding children die with their parent
        signal.alarm(GONE_S)
        self.drain()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second: whether to close the listener and leave."""
        self._watch_engine()
        if self._drained_at is not None and not self.should_exit:
            is_over = time.monotonic() >= self._drained_at
            if is_over:
                self._service.give_up()
            self.should_exit = is_over or not self.server_state.tasks
        return await super().on_tick(counter)

    def _watch_engine(self) -> None:
        health = self._service.health()
        if health not in (Health.STALLED, Health.DEAD):
            self._unwell_since = None
            return
        now = time.monotonic()
        if self._unwell_since is None:
            self._unwell_since = now
        unwell = now - self._unwell_since
        if health is Health.STALLED and unwell >= STUCK_S:
            logger.critical("the engine is stuck: the process ends")
            logging.shutdown()
            os._exit(os.EX_SOFTWARE)  # no thread waits for it; decoding children die as well
        if health is Health.DEAD and unwell >= RED_S and not self.should_exit:
            if threading.current_thread() is threading.main_thread():
                hanging = threading.Timer(RED_GONE_S, os._exit, (os.EX_SOFTWARE,))
                hanging.daemon = True  # it does not run if nothing hangs
                hanging.start()
            self.exit_code = os.EX_SOFTWARE
            self.should_exit = True


def load_certificate(config: Config) -> ssl.SSLContext | None:
    """What connections shake hands with, or None; `ConfigError` where it cannot be read."""
    if config.ssl_certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--ssl-certfile {config.ssl_certfile}, --ssl-keyfile {config.ssl_keyfile}: {error}"
        ) from None
    return context


def raise_file_limit(limits: Limits) -> Limits:
    """Let the process open a file for each connection. Where its own limits do not allow so many,
    these are the limits with fewer connections: half of the files, at least, are for all else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = limits.connections + limits.refused_connections
    files = connections + FILES_BESIDE
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    if soft == resource.RLIM_INFINITY:
        return limits
    if soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    share = (files - min(FILES_BESIDE, files // 2)) / connections
    return replace(
        limits,
        connections=int(limits.connections * share),
        refused_connections=int(limits.refused_connections * share),
    )


class Listener(socket.socket):
    """Turns away whom there is no file for, on the one that it keeps for that.

    asyncio would leave them waiting, ask 2048 times a second whether there is one now, and write
    a traceback into the log each time.
    """

    note: Callable[[str, str | None], None] = staticmethod(lambda why, request: None)

    def __init__(self, family: int) -> None:
        super().__init__(family)
        self._spare = FileIO(os.devnull)

    def accept(self) -> tuple[socket.socket, Any]:
        """`BlockingIOError`, which asks again, when one was turned away. Where the spare file is
        lost, to a thread that was quicker, asyncio has its way until there is one again."""
        self._keep_spare()
        try:
            return super().accept()
        except OSError as error:
            if not is_out_of_files(error) or self._spare.closed:
                raise
        self._turn_away()
        raise BlockingIOError

    def _turn_away(self) -> None:
        self._spare.close()
        with suppress(OSError):  # a thread may have been quicker, the client may be gone
            super().accept()[0].close()
            self.note("too_many_connections", None)
        self._keep_spare()

    def _keep_spare(self) -> None:
        if self._spare.closed:
            with suppress(OSError):
                self._spare = FileIO(os.devnull)

    def close(self) -> None:
        self._spare.close()
        super().close()
