"""The gateway's application: the stock kernel gateway with our managers, routes and connection."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from typing import Any

from jupyter_core.application import JupyterApp
from kernel_gateway.gatewayapp import KernelGatewayApp
from tornado import httpserver, ioloop, netutil
from tornado.iostream import IOStream
from traitlets.config import Config

from .connection import CellboxWebsocketConnection
from .handed_over import HandedOver
from .kernel_managers import CellboxKernelSpecManager, CellboxMappingKernelManager
from .zygote_client import ZygoteClient

HOST = "127.0.0.1"
# Far above any message a kernel or the service sends; the sandbox's memory limit is the real one.
MAX_MESSAGE_BYTES = 1024 * 1024 * 1024
# Within this time after a stop request the kernels are gone, or the process ends without them.
STOP_DEADLINE_SECONDS = 5.0
PARENT_POLL_MS = 1000
# A zygote that would have slowed the gateway's own start begins when the first kernel is likely to have started.
LATE_START_SECONDS = 5.0


class CellboxGateway(KernelGatewayApp):
    """The stock gateway with our kernel managers, routes and connection, configured by arguments only."""

    name = "cellbox-gateway"
    zygote: ZygoteClient
    _handed_over: HandedOver | None = None

    def migrate_config(self) -> None:
        """Nothing in the sandbox's home configures the gateway."""

    load_config_file = migrate_config

    def init_webapp(self) -> None:
        # A token in a URL would end up in the access log.
        logging.getLogger("tornado.access").disabled = True
        super().init_webapp()
        self.web_app.settings["websocket_max_message_size"] = MAX_MESSAGE_BYTES

    def init_http_server(self) -> None:
        try:
            sockets = netutil.bind_sockets(self.port, HOST)
        except OSError as error:
            sys.exit(f"cellbox gateway: can't listen on {HOST}:{self.port}: {error.strerror}")
        self.port = sockets[0].getsockname()[1]
        self.http_server = httpserver.HTTPServer(self.web_app, max_buffer_size=MAX_MESSAGE_BYTES)
        self.http_server.add_sockets(sockets)

    def init_signal(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(signum, self._signal_stop)

    def start_app(self) -> None:
        JupyterApp.start(self)
        self._take_connections()
        self.kernel_manager.zygote = self.zygote
        self.io_loop.add_callback(self.zygote.watch, LATE_START_SECONDS)
        self._parent_watch = ioloop.PeriodicCallback(self._stop_without_parent, PARENT_POLL_MS)
        self._parent_pid = os.getppid()
        self._parent_watch.start()
        print(f"cellbox gateway listening on {HOST}:{self.port}", flush=True)

    def _take_connections(self) -> None:
        """Serves what the agent gives away, beside what connects to the port; says where, before saying the port."""
        try:
            self._handed_over = HandedOver(os.path.join(self.runtime_dir, "connections"), self._serve)
        except OSError as error:
            self.log.warning("Connections are not taken over: %s", error)  # the agent passes bytes on then
            return
        self.io_loop.add_callback(self._handed_over.start)
        print(f"cellbox gateway takes connections at {self._handed_over.path}", flush=True)

    def _serve(self, connection: socket.socket) -> None:
        stream = IOStream(connection, max_buffer_size=MAX_MESSAGE_BYTES)
        self.http_server.handle_stream(stream, connection.getpeername())

    def _stop_without_parent(self) -> None:
        if os.getppid() != self._parent_pid:
            self.stop()

    def stop(self, from_signal: bool = False) -> None:
        # Kernels that outlive the deadline are killed by the kernel as we die (`die_with_gateway`).
        deadline = threading.Timer(STOP_DEADLINE_SECONDS, os._exit, [1])
        deadline.daemon = True
        deadline.start()
        if self._handed_over is not None:
            self._handed_over.close()
        super().stop(from_signal)

    def _signal_stop(self, sig: int, frame: Any) -> None:
        self.stop(from_signal=True)


def gateway_config(port: int, token: str) -> Config:
    """The gateway's whole configuration."""
    config = Config()
    config.KernelGatewayApp.port = port
    config.KernelGatewayApp.auth_token = token
    config.KernelGatewayApp.api = "cellbox_kernel.routes"
    config.KernelGatewayApp.log_level = logging.WARNING
    config.KernelGatewayApp.kernel_manager_class = CellboxMappingKernelManager
    config.KernelGatewayApp.kernel_spec_manager_class = CellboxKernelSpecManager
    config.KernelGatewayApp.kernel_websocket_connection_class = CellboxWebsocketConnection
    # No pings: a client under back-pressure may read nothing for minutes, and a dead one closes its local socket.
    config.KernelGatewayApp.ws_ping_interval = 0
    config.JupyterWebsocketPersonality.list_kernels = True
    return config


def run(port: int, token: str, zygote: ZygoteClient) -> None:
    """Runs the gateway in this process until it is told to stop; ends the zygote."""
    # The stock gateway's own manager class causes the same warning.
    warnings.filterwarnings("ignore", message=".*is not a subclass of 'ServerKernelManager'", category=FutureWarning)
    CellboxGateway.zygote = zygote
    runtime_dir = tempfile.mkdtemp(prefix="cellbox-gateway-")
    try:
        CellboxGateway.launch_instance(argv=[], config=gateway_config(port, token), runtime_dir=runtime_dir)
    finally:
        zygote.close()
        shutil.rmtree(runtime_dir, ignore_errors=True)  # connection files; nothing to do when they are gone already
