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
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from litevl.api.app import create_app
from litevl.api.bodies import MAX_BYTES_IN_FLIGHT
from litevl.api.records import Records
from litevl.api.service import Service
from litevl.api.wire import GuardedProtocol, Limits
from litevl.config import Config
from litevl.errors import ConfigError
from litevl.health import Health
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
        self.budget = BytesInFlight(max(MAX_BYTES_IN_FLIGHT, config.max_body_size), "requests")
        self._service = service
        self._drained_at: float | None = None  # when patience ends
        records = Records()
        self._unwell_since: float | None = None
        self.exit_code = 0
        protocol: Any = partial(  # uvicorn's types ask for a class
            GuardedProtocol,
            limits=limits,
            tls=load_certificate(config),
            note=records.note_connection,
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


def raise_file_limit(limits: Limits) -> None:
    """Let the process open a file for each connection, as far as its own limits allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections + limits.refused_connections + FILES_BESIDE
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
