"""Commands and terminals through the asynchronous half of the official Python SDK."""

import asyncio
import re

import pytest
import pytest_asyncio
from e2b.sandbox.commands.command_handle import PtySize
from e2b_code_interpreter import AsyncSandbox, CommandExitException, NotFoundException, TimeoutException

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def box():
    box = await AsyncSandbox.create(timeout=300, envs={"FROM_CREATE": "sandbox"})
    yield box
    await box.kill()


async def test_runs_commands(box):
    out = []
    result = await box.commands.run("echo $FROM_CREATE $FROM_CALL", envs={"FROM_CALL": "call"}, on_stdout=out.append)
    assert (result.exit_code, result.stdout, out) == (0, "sandbox call\n", ["sandbox call\n"])
    with pytest.raises(CommandExitException) as caught:
        await box.commands.run("exit 3", cwd="/usr")
    assert caught.value.exit_code == 3
    with pytest.raises(TimeoutException):
        await box.commands.run("sleep 30", timeout=0.7)
    results = await asyncio.gather(*(box.commands.run(f"sleep 0.2; echo {n}") for n in range(20)))
    assert [each.stdout for each in results] == [f"{n}\n" for n in range(20)]


async def test_drives_a_background_command(box):
    handle = await box.commands.run("cat", background=True, stdin=True)
    assert handle.pid in [each.pid for each in await box.commands.list()]
    again = await box.commands.connect(handle.pid)
    assert again.pid == handle.pid
    await box.commands.send_stdin(handle.pid, "text\n")
    if hasattr(box.commands, "close_stdin"):
        await box.commands.close_stdin(handle.pid)
        assert (await handle.wait()).stdout == "text\n"
    else:
        await handle.kill()
    with pytest.raises(NotFoundException):
        await box.commands.connect(999_999)
    other = await box.commands.run("exec sleep 60", background=True)
    assert await box.commands.kill(other.pid) is True
    assert await box.commands.kill(999_999) is False
    with pytest.raises(CommandExitException):
        await other.wait()


async def test_streams_many_inputs_in_order(box):
    if not hasattr(box.commands, "stream_input"):
        pytest.skip("this generation of the SDK has no stream_input")

    handle = await box.commands.run("cat", background=True, stdin=True)
    lines = box.commands.stream_input(handle.pid)
    for n in range(200):
        await lines.send(f"{n}\n")
    await lines.close()
    await box.commands.close_stdin(handle.pid)
    assert (await handle.wait()).stdout == "".join(f"{n}\n" for n in range(200))


async def test_drives_a_terminal(box):
    shown = []
    terminal = await box.pty.create(PtySize(rows=24, cols=80), on_data=shown.append, envs={"FROM_CALL": "yes"})
    await box.pty.resize(terminal.pid, PtySize(rows=24, cols=100))
    await box.pty.send_stdin(terminal.pid, b'echo "[$FROM_CALL]"; tput cols; exit\n')
    assert (await terminal.wait()).exit_code == 0
    text = b"".join(shown).decode()
    assert "[yes]" in text and re.search(r"[\r\n]100\r\n", text)


async def test_takes_a_terminal_up_again_and_kills_it(box):
    terminal = await box.pty.create(PtySize(rows=24, cols=80), on_data=lambda _: None)
    await terminal.disconnect()
    shown = []
    again = await box.pty.connect(terminal.pid, on_data=shown.append)
    assert again.pid == terminal.pid
    assert await box.pty.kill(terminal.pid) is True
    with pytest.raises(CommandExitException):
        await again.wait()
    assert await box.pty.kill(999_999) is False


async def test_says_that_the_sandbox_is_gone():
    box = await AsyncSandbox.create(timeout=120)
    handle = await box.commands.run("sleep 60", background=True)
    await box.kill()
    with pytest.raises(TimeoutException, match="sandbox was killed or reached its end of life"):
        await handle.wait()
