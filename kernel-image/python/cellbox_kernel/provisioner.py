"""The kernel provisioner of Python kernels: forks them from the gateway's zygote."""

from __future__ import annotations

import os
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from .kernelspecs import python_argv
from .zygote_client import Unavailable, ZygoteClient

# Everything before the connection file's option.
KERNEL_COMMAND = python_argv()[:-2]


class ZygoteProvisioner(LocalProvisioner):
    """Starts a kernel as a fork where that is as good as a start by its command, and by its command otherwise.

    Everything after the start is the stock provisioner's: a forked process leads a session and group of its own, and
    `ForkedProcess` answers as Popen does.
    """

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        zygote = self._zygote()
        if zygote is None or cmd[: len(KERNEL_COMMAND)] != KERNEL_COMMAND:
            return await super().launch_kernel(cmd, **kwargs)
        cwd = kwargs.get("cwd") or os.getcwd()
        env = kwargs["env"] | {"JPY_PARENT_PID": str(os.getpid())}
        try:
            process = await zygote.fork(cmd[len(KERNEL_COMMAND) :], env, str(cwd))
        except Unavailable as reason:
            self.log.debug("Kernel %s is started by its command: %s", self.kernel_id, reason)
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.pid, self.pgid, self.cwd = process, process.pid, process.pid, cwd
        return self.connection_info

    def _zygote(self) -> ZygoteClient | None:
        """None in programs other than our gateway that use our kernelspec."""
        manager = self.parent.parent if self.parent is not None else None
        return getattr(manager, "zygote", None)
