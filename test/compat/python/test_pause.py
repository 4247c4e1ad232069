"""`pause` and what undoes it, by the official Python SDK, both halves."""

import asyncio
import time

import pytest
from e2b_code_interpreter import AsyncSandbox, NotFoundException, Sandbox

from programs import until


def state_of(box):
    return Sandbox.get_info(box.sandbox_id).state.value


def test_pause_and_connect():
    box = Sandbox.create(timeout=120)
    box.run_code("x = 41")
    assert box.pause()
    assert not box.pause()
    assert not box.beta_pause()
    assert state_of(box) == "paused"
    assert not box.is_running()
    again = Sandbox.connect(box.sandbox_id, timeout=120)
    assert again.run_code("x + 1").text == "42"
    assert state_of(box) == "running"
    again.pause()
    assert again.kill()
    with pytest.raises(NotFoundException):
        Sandbox.connect(box.sandbox_id)


def test_pause_at_the_deadline_and_resume_by_traffic():
    box = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    box.run_code("x = 41")
    box.set_timeout(1)
    until(lambda: state_of(box) == "paused", deadline=20)
    assert box.run_code("x + 1").text == "42"
    assert box.get_info().end_at.timestamp() - time.time() > 240
    box.kill()


def test_pause_with_files_alone():
    box = Sandbox.create(timeout=120, envs={"COLOUR": "blue"})
    box.files.write("a.txt", "content")
    box.run_code("x = 41")
    assert box.pause(keep_memory=False)
    assert not box.pause(keep_memory=False)
    assert state_of(box) == "paused"
    again = Sandbox.connect(box.sandbox_id, timeout=120)
    assert again.files.read("a.txt") == "content"
    cell = again.run_code('"x" in globals(), __import__("os").environ["COLOUR"]')
    assert cell.text == "(False, 'blue')"
    again.kill()


def test_pause_with_files_alone_at_the_deadline():
    on_timeout = {"action": "pause", "keep_memory": False}
    box = Sandbox.create(timeout=60, lifecycle={"on_timeout": on_timeout})
    box.files.write("a.txt", "content")
    box.set_timeout(1)
    until(lambda: state_of(box) == "paused", deadline=20)
    box.connect(timeout=60)
    assert box.files.read("a.txt") == "content"
    box.kill()


def test_pause_and_connect_async():
    async def program():
        box = await AsyncSandbox.create(timeout=120)
        await box.run_code("x = 41")
        assert await box.pause()
        assert not await box.pause()
        await box.connect(timeout=120)
        assert (await box.run_code("x + 1")).text == "42"
        await box.kill()

    asyncio.run(program())
