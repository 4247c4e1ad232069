"""The gateway's HTTP routes: the stock ones, with kernel creation of our own and constant-time authentication."""

from __future__ import annotations

import hmac
import json
import logging
import time
from typing import Any

import jupyter_server.services.kernels.handlers as server_handlers
from jupyter_client.jsonutil import json_default
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_escape, url_path_join
from kernel_gateway.jupyter_websocket import JupyterWebsocketPersonality
from kernel_gateway.mixins import CORSMixin, JSONErrorsMixin
from tornado import web

from .environment import cwd_problem, env_problem
from .launch_log import shorten_failed_starts
from .settling import is_settled

MAX_METADATA = 16 * 1024
# How long a request waits for a restart that is under way. Below the service's deadline for the request.
SETTLE_SECONDS = 20.0


class ConstantTimeTokenMixin:
    """Checks `Authorization: token <value>` or `?token=<value>` before anything else; 401 without it."""

    def prepare(self) -> Any:
        given = self.get_argument("token", None)
        if given is None:
            scheme, _, value = self.request.headers.get("Authorization", "").partition(" ")
            given = value if scheme.lower() == "token" else ""
        if not hmac.compare_digest(given.encode(), self.settings["kg_auth_token"].encode()):
            self.set_status(401)
            self.finish(json.dumps({"reason": "Unauthorized", "message": "Missing or wrong gateway token"}))
            return None
        return super().prepare()


class MainKernelHandler(CORSMixin, JSONErrorsMixin, server_handlers.MainKernelHandler):
    """`GET /api/kernels` lists the kernels; `POST` starts one from `{"name"?, "env"?, "cwd"?, "metadata"?}`.

    `metadata` is the client's: an object that the kernel's model shows again, for a client that lost its memory.
    """

    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = self.get_json_body()
        if body is None:
            body = {}
        if not isinstance(body, dict):
            return self._refuse(400, "The body must be a JSON object")
        name, env, cwd = body.get("name") or "python3", body.get("env"), body.get("cwd")
        if not isinstance(name, str):
            return self._refuse(400, "name must be a string")
        if env is not None and (problem := env_problem(env)):
            return self._refuse(400, problem)
        if cwd is not None and (problem := cwd_problem(cwd)):
            return self._refuse(400, problem)
        metadata = body.get("metadata")
        if metadata is not None and (not isinstance(metadata, dict) or len(json.dumps(metadata)) > MAX_METADATA):
            return self._refuse(400, f"metadata must be an object of at most {MAX_METADATA} characters of JSON")
        name = "python3" if name == "python" else name
        try:
            self.kernel_spec_manager.get_kernel_spec(name)
        except (NoSuchKernel, ValueError):  # ValueError: characters that no kernel name has
            message = (
                f"The '{name}' kernel is not available. Please pick another suitable kernel instead, "
                "or install that kernel."
            )
            return self._refuse(404, message, short_message=f"{name} not found")
        try:
            kernel_id = await self.kernel_manager.start_kernel(kernel_name=name, env=env, cwd=cwd, metadata=metadata)
        except OSError as error:
            return self._refuse(500, f"The '{name}' kernel could not be started: {error}")
        self.set_header("Location", url_path_join(self.base_url, "api", "kernels", url_escape(kernel_id)))
        self.set_status(201)
        self.finish(json.dumps(self.kernel_manager.kernel_model(kernel_id), default=json_default))

    def _refuse(self, status: int, message: str, **more: str) -> None:
        self.set_status(status)
        self.finish(json.dumps({"message": message, **more}))


class SettledKernelMixin:
    """Waits while the kernel's process is being replaced: two who do that at a time get in each other's way."""

    async def settle(self, kernel_id: str) -> None:
        """@raises HTTPError 404 when the kernel is gone by then, 503 when that takes too long."""
        if not await is_settled(self.kernel_manager.get_kernel(kernel_id), time.monotonic() + SETTLE_SECONDS):
            raise web.HTTPError(503, "The kernel is still being restarted")
        self.kernel_manager.get_kernel(kernel_id)


class KernelHandler(SettledKernelMixin, CORSMixin, JSONErrorsMixin, server_handlers.KernelHandler):
    """`GET` and `DELETE /api/kernels/<id>`; a kernel that is just being restarted is ended after that."""

    @web.authenticated
    @authorized
    async def delete(self, kernel_id: str) -> None:
        await self.settle(kernel_id)
        await self.kernel_manager.shutdown_kernel(kernel_id)
        self.set_status(204)
        self.finish()


class KernelActionHandler(SettledKernelMixin, CORSMixin, JSONErrorsMixin, server_handlers.KernelActionHandler):
    """`POST /api/kernels/<id>/restart` and `/interrupt`, at any time of the kernel's life.

    During a restart, be it the gateway's own after a death or somebody's, another restart comes after it, and an
    interrupt is done: what it was meant for is gone.
    """

    @web.authenticated
    @authorized
    async def post(self, kernel_id: str, action: str) -> None:
        kernel = self.kernel_manager.get_kernel(kernel_id)
        if action == "interrupt":
            if kernel.ready.done():
                await self.kernel_manager.interrupt_kernel(kernel_id)
            self.set_status(204)
            self.finish()
            return
        await self.settle(kernel_id)
        try:
            # `?now=true` kills the old process, which may obey nothing, instead of asking it to end.
            now = self.get_argument("now", "") == "true"
            await self.kernel_manager.restart_kernel(kernel_id, now=now)
        except OSError as error:
            kernel._restarter.give_up()
            raise web.HTTPError(500, f"The kernel could not be started again: {error}") from error
        self.finish(json.dumps(self.kernel_manager.kernel_model(kernel_id), default=json_default))


# By the names of the stock ones that they replace.
OWN_HANDLERS = {handler.__name__: handler for handler in (MainKernelHandler, KernelHandler, KernelActionHandler)}


class CellboxPersonality(JupyterWebsocketPersonality):
    """The routes of the Jupyter API, each behind the token."""

    def create_request_handlers(self) -> list[tuple[Any, ...]]:
        return [self._route(*route) for route in super().create_request_handlers()]

    def _route(self, pattern: str, handler: type[web.RequestHandler], *rest: Any) -> tuple[Any, ...]:
        handler = OWN_HANDLERS.get(handler.__name__, handler)
        bases: tuple[type, ...] = (ConstantTimeTokenMixin, handler)
        if not issubclass(handler, (APIHandler, JSONErrorsMixin)):
            # The WebSocket's, for one, would answer errors with a page from templates that the gateway doesn't load.
            bases = (ConstantTimeTokenMixin, JSONErrorsMixin, handler)
        return (pattern, type(handler.__name__, bases, {}), *rest)


def create_personality(parent: Any, log: logging.Logger) -> CellboxPersonality:
    log.addFilter(shorten_failed_starts)
    return CellboxPersonality(parent=parent, log=log)
