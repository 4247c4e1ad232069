"""stdout and stderr of the Python kernel."""

from __future__ import annotations

import codecs
import os
import sys
import threading
from typing import Any

from ipykernel.iostream import OutStream

from .cell_headers import header_of_thread
from .messages import printable

# Upper bound of one stream message's text in bytes. One message too large to become a string kills its reader.
MAX_MESSAGE_BYTES = 1024 * 1024
_MAX_CHARACTERS_OF_ANY_WIDTH = MAX_MESSAGE_BYTES // 4
# Characters that wait for the next message; a writer that is ahead by more waits until they are sent.
BUFFER_CHARACTERS = 1024 * 1024

_READ_BYTES = 64 * 1024
# How long the end of a cell waits for text that its child processes have written, in seconds.
DRAIN_SECONDS = 1.0


class CellboxOutStream(OutStream):
    """The stock stream, plus:

    - long text is split into messages of at most `MAX_MESSAGE_BYTES`, never inside a character;
    - text and newline of one `print` stay in one message;
    - what child processes write to file descriptor 1 or 2 arrives whole, before the end of their cell;
    - memory stays bounded: when nobody takes the output, the writer waits, be it a thread or a child process.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._generation = 0
        # The latest parent header and the buffer's key made of it.
        self._latest: tuple[dict[str, Any] | None, frozenset[tuple[str, Any]]] = (None, frozenset())
        # In the pipe this stands for "everything before this has been read".
        self._marker = b"\0" + os.urandom(12).hex().encode() + b"\0"
        self._drained = threading.Event()
        self._pipe_writer: int | None = None
        self._buffered = 0
        # The thread that reads the pipe is writing what it read, which may take as long as the client likes.
        self._reader_waits = False
        super().__init__(*args, **kwargs)

    @property
    def parent_header(self) -> dict[str, Any]:
        try:
            return self._parent_header.get()
        except LookupError:  # not in the kernel's own thread or a task of it
            return header_of_thread() or self._parent_header_global

    @parent_header.setter
    def parent_header(self, header: dict[str, Any]) -> None:
        self._parent_header_global = header
        self._parent_header.set(header)

    def write(self, string: str) -> int | None:
        # The stock method hashes the whole parent header on every write; it changes once per cell.
        if not isinstance(string, str) or self.pub_thread is None or self.echo or not self._is_master_process():
            return super().write(string)
        parent = self.parent_header
        latest_parent, key = self._latest
        if parent is not latest_parent:
            key = frozenset(parent.items())
            self._latest = (parent, key)  # at once: other threads write for other cells
        if len(string) <= BUFFER_CHARACTERS:
            self._append(key, string)
        else:
            for start in range(0, len(string), BUFFER_CHARACTERS):
                self._append(key, string[start : start + BUFFER_CHARACTERS])
        return len(string)

    def _append(self, key: frozenset[tuple[str, Any]], text: str) -> None:
        with self._buffer_lock:
            self._buffers[key].write(text)
            self._buffered += len(text)
        if self._buffered <= BUFFER_CHARACTERS:
            self._schedule_flush()
            return
        self.flush()  # makes messages of it …
        if self.pub_thread is not None:
            self.pub_thread.wait_for_scheduled()  # … which are sent now

    def _rotate_buffers(self) -> Any:
        with self._buffer_lock:
            self._buffered = 0
            return super()._rotate_buffers()

    def flush(self) -> None:
        """As the stock method, which gives up after ten seconds and says so in the user's output."""
        thread = self.pub_thread
        if thread is None or thread.thread is threading.current_thread() or not thread.thread.is_alive():
            self._flush()
            return
        thread.schedule(self._flush)
        thread.wait_for_scheduled()

    def _schedule_flush(self) -> None:
        if self._flush_pending:
            return
        self._flush_pending = True
        generation = self._generation

        def flush_later() -> None:
            self._io_loop.call_later(self.flush_interval, lambda: self._flush_if_still(generation))

        self.pub_thread.schedule(flush_later)

    def _flush_if_still(self, generation: int) -> None:
        # A timer of an earlier cell must not fire between the text and the newline of this one's print.
        if generation == self._generation:
            self._flush()

    def _flush(self) -> None:
        self._generation += 1
        super()._flush()

    def _flush_buffers(self) -> Any:
        for parent, text in super()._flush_buffers():
            text = printable(text)
            size = MAX_MESSAGE_BYTES if text.isascii() else _MAX_CHARACTERS_OF_ANY_WIDTH
            for start in range(0, len(text), size):
                yield parent, text[start : start + size]

    def _setup_stream_redirects(self, name: str) -> None:
        reader, self._pipe_writer = os.pipe()
        self._original_stdstream_fd = getattr(sys, name).fileno()
        self._original_stdstream_copy = os.dup(self._original_stdstream_fd)
        os.dup2(self._pipe_writer, self._original_stdstream_fd)
        self._fid = reader
        self._exc = None
        self.watch_fd_thread = threading.Thread(target=self._watch_pipe_fd, name=f"{name} pipe", daemon=True)
        self.watch_fd_thread.start()

    def _watch_pipe_fd(self) -> None:
        # The stock reader cuts characters at its buffer's end and copies everything to the gateway's own log.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pending = b""
        while (data := os.read(self._fid, _READ_BYTES)) and self._should_watch:
            pending += data
            while True:
                head, marker, tail = pending.partition(self._marker)
                if not marker:
                    break
                self._write_text(decoder.decode(head, True))  # half a character stays half
                self._drained.set()
                pending = tail
            keep = _length_of_partial(pending, self._marker)
            self._write_text(decoder.decode(pending[: len(pending) - keep]))
            pending = pending[len(pending) - keep :]

    def _write_text(self, text: str) -> None:
        if text:
            self._reader_waits = True
            try:
                self.write(text)
            finally:
                self._reader_waits = False

    def drain(self) -> None:
        """Waits until everything written to the file descriptor so far is in this stream's buffer."""
        if self._pipe_writer is None or not self._is_master_process() or not self.watch_fd_thread.is_alive():
            return
        self._drained.clear()
        os.write(self._pipe_writer, self._marker)
        while not self._drained.wait(DRAIN_SECONDS) and self._reader_waits:
            pass  # for whoever takes our output


def _length_of_partial(data: bytes, marker: bytes) -> int:
    """How many bytes at the end of `data` may be the beginning of `marker`."""
    start = data.rfind(marker[:1], max(0, len(data) - len(marker) + 1))
    while start != -1:
        if marker.startswith(data[start:]):
            return len(data) - start
        start = data.rfind(marker[:1], max(0, len(data) - len(marker) + 1), start)
    return 0
