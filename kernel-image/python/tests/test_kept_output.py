"""What the gateway keeps for a client that has gone away, without a kernel."""

from __future__ import annotations

from typing import Any

import pytest
from jupyter_client.session import DELIM

from cellbox_kernel import kernel_managers
from cellbox_kernel.activity import Activity

KERNEL, SESSION = "kernel", "kernel:session"
BUSY, IDLE = (
    [b"topic", DELIM, b"signature", b'{"msg_type":"status"}', b'{"msg_type":"execute_request"}', b"{}", content]
    for content in (b'{"execution_state":"busy"}', b'{"execution_state":"idle"}')
)


class Stream:
    """What is used of a ZMQStream; `receive` is a message that arrives, and is lost when nobody listens."""

    def __init__(self) -> None:
        self.on_message: Any = None
        self.socket = self

    def on_recv(self, on_message: Any) -> None:
        self.on_message = on_message

    def stop_on_recv(self) -> None:
        self.on_message = None

    def closed(self) -> bool:
        return False

    def subscribe(self, _topic: bytes) -> None: ...

    def unsubscribe(self, _topic: bytes) -> None: ...

    def receive(self, parts: list[bytes]) -> None:
        if self.on_message is not None:
            self.on_message(parts)


class Manager(kernel_managers.CellboxMappingKernelManager):
    """Has one kernel, which nobody started."""

    def __init__(self) -> None:
        super().__init__()
        self.execution_state = "idle"
        self.activity = Activity(self)
        self.activity.start(Stream())
        self.channels = {"iopub": Stream(), "shell": Stream()}

    def _check_kernel_id(self, kernel_id: str) -> None: ...

    def get_kernel(self, kernel_id: str) -> Any:
        return self


@pytest.fixture
def manager():
    manager = Manager()
    manager.channels["iopub"].on_recv(manager.activity.tell)
    manager.channels["iopub"].receive(BUSY)
    manager.start_buffering(KERNEL, SESSION, manager.channels)
    return manager


def kept(manager: Manager) -> list[tuple[str, list[bytes]]]:
    return manager.get_buffer(KERNEL, SESSION)["buffer"]


def test_a_kernel_is_heard_on_when_its_client_had_not_got_everything(manager):
    manager.keep_first(KERNEL, manager.channels, [("iopub", BUSY)])
    manager.channels["shell"].receive([b"reply"])
    manager.channels["iopub"].receive(IDLE)
    assert manager.execution_state == "idle"
    assert kept(manager) == [("iopub", BUSY), ("shell", [b"reply"]), ("iopub", IDLE)]


@pytest.mark.parametrize("first", [True, False])
def test_it_is_read_up_to_a_limit_that_counts_what_its_client_had_not_got(manager, monkeypatch, first):
    monkeypatch.setattr(kernel_managers, "OFFLINE_BUFFER_BYTES", 1_000)
    half = [b"x" * 600]
    manager.keep_first(KERNEL, manager.channels, [("shell", half)] if first else [])
    for _ in range(3):
        manager.channels["shell"].receive(half)
    assert [stream.on_message for stream in manager.channels.values()] == [None, None]
    assert kept(manager) == [("shell", half)] * 2


def test_nothing_is_put_before_what_is_kept_for_somebody_else(manager):
    manager.keep_first(KERNEL, {"iopub": Stream()}, [("iopub", BUSY)])
    assert kept(manager) == []
