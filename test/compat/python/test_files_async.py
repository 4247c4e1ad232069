"""Files and watching through the asynchronous half of the official Python SDK."""

import asyncio
import os

import pytest
import pytest_asyncio
from e2b import FileType, FilesystemEventType
from e2b_code_interpreter import AsyncSandbox, FileNotFoundException

pytestmark = pytest.mark.asyncio
HOME = "/home/user"


@pytest_asyncio.fixture
async def box():
    box = await AsyncSandbox.create(timeout=300)
    yield box
    await box.kill()


async def test_handles_files(box):
    data = os.urandom(300_000)
    await box.files.write("deep/binary", data, metadata={"author": "ada"})
    assert bytes(await box.files.read("deep/binary", format="bytes")) == data
    streamed = b"".join([chunk async for chunk in await box.files.read("deep/binary", format="stream")])
    assert streamed == data
    info = await box.files.get_info("deep/binary")
    assert (info.type, info.size, info.metadata) == (FileType.FILE, len(data), {"author": "ada"})
    assert [each.name for each in await box.files.list("deep")] == ["binary"]
    assert await box.files.exists("deep/binary") is True
    assert (await box.files.rename("deep/binary", "moved")).path == f"{HOME}/moved"
    await box.files.remove("moved")
    assert await box.files.exists("moved") is False
    assert await box.files.make_dir("made") is True
    assert await box.files.make_dir("made") is False
    with pytest.raises(FileNotFoundException):
        await box.files.read("moved")
    many = [{"path": f"many/{n}", "data": str(n)} for n in range(20)]
    assert [each.name for each in await box.files.write_files(many)] == [str(n) for n in range(20)]


async def test_watches(box):
    await box.files.make_dir("watched")
    events, seen_write = [], asyncio.Event()

    def on_event(event):
        events.append((event.type, event.name))
        if event.type == FilesystemEventType.WRITE:
            seen_write.set()

    handle = await box.files.watch_dir("watched", on_event, recursive=True)
    await box.files.write("watched/file", "x")
    await asyncio.wait_for(seen_write.wait(), 10)
    assert events == [
        (FilesystemEventType.CREATE, "file"),
        (FilesystemEventType.CHMOD, "file"),
        (FilesystemEventType.WRITE, "file"),
    ]
    await handle.stop()
    with pytest.raises(FileNotFoundException):
        await box.files.watch_dir("no-such-dir", on_event)
