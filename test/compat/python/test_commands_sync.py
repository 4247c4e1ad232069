"""Commands and terminals through the synchronous half of the official Python SDK."""

import os
import re
import time

import pytest
from e2b.sandbox.commands.command_handle import PtySize
from e2b_code_interpreter import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    TimeoutException,
)

from programs import until

DOCKER = os.environ["CELLBOX_TEST_RUNTIME"] == "docker"


@pytest.fixture(scope="module")
def box():
    box = Sandbox.create(timeout=600, envs={"FROM_CREATE": "sandbox"})
    yield box
    box.kill()


def test_gives_what_a_command_prints(box):
    out, err = [], []
    result = box.commands.run("echo out; echo err >&2", on_stdout=out.append, on_stderr=err.append)
    assert (result.exit_code, result.stdout, result.stderr, result.error) == (0, "out\n", "err\n", None)
    assert (out, err) == (["out\n"], ["err\n"])
    assert box.commands.run("printf 'a\\nb\\n'; echo '!@#$%^&*()'").stdout == "a\nb\n!@#$%^&*()\n"


def test_raises_what_a_failing_command_left(box):
    with pytest.raises(CommandExitException) as caught:
        box.commands.run("echo out; echo err >&2; exit 7")
    error = caught.value
    assert (error.exit_code, error.stdout, error.stderr, error.error) == (7, "out\n", "err\n", "exit status 7")


def test_replaces_bytes_that_are_no_text(box):
    assert box.commands.run("head -c 8191 /dev/zero | tr '\\0' a; printf '\\xe2'").stdout == "a" * 8191 + "\ufffd"


def test_keeps_environments_apart(box):
    assert box.commands.run("echo $FROM_CALL", envs={"FROM_CALL": "call"}).stdout == "call\n"
    assert box.commands.run("echo [$FROM_CALL] $FROM_CREATE").stdout == "[] sandbox\n"
    program = 'import os; print(os.environ["FROM_CALL"])'
    assert box.commands.run(f"python3 -c '{program}'", envs={"FROM_CALL": "py"}).stdout == "py\n"


def test_runs_where_and_as_whom_it_is_told(box):
    assert box.commands.run("pwd", cwd="/usr").stdout == "/usr\n"
    with pytest.raises(InvalidArgumentException, match="/no/such/place"):
        box.commands.run("pwd", cwd="/no/such/place")
    assert box.commands.run("true", user="user").exit_code == 0
    with pytest.raises(AuthenticationException):
        box.commands.run("true", user="nobody-here")
    if DOCKER:
        assert box.commands.run("whoami; pwd", user="root").stdout == "root\n/root\n"


def test_ends_a_command_at_its_time_out(box):
    with pytest.raises(TimeoutException):
        box.commands.run("sleep 30", timeout=0.7)
    with pytest.raises(TimeoutException):
        # The start is in here, too: on a slow machine its time is over before that is told.
        for _ in box.commands.run("sleep 30", background=True, timeout=0.7):
            pass
    assert box.commands.run("sleep 1; echo done", timeout=10).stdout == "done\n"


def test_follows_a_background_command_from_two_sides(box):
    first = box.commands.run("read line; echo got $line", background=True, stdin=True)
    assert first.pid in [each.pid for each in box.commands.list()]
    second = box.commands.connect(first.pid)
    assert second.pid == first.pid
    box.commands.send_stdin(first.pid, "it\n")
    assert first.wait().stdout == "got it\n"
    assert second.wait().stdout == "got it\n"
    assert first.pid not in [each.pid for each in box.commands.list()]
    with pytest.raises(NotFoundException):
        box.commands.connect(999_999)


def test_kills_and_reaps(box):
    handle = box.commands.run("exec sleep 60", background=True)
    assert box.commands.kill(handle.pid) is True
    with pytest.raises(CommandExitException):
        box.commands.run(f"kill -0 {handle.pid}")
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    assert box.commands.kill(999_999) is False


@pytest.mark.parametrize("text", ["hello, ü\n", "!@#$%^&*()_+{}|:<>?~\n", "one\ntwo\n"])
def test_echoes_its_input(box, text):
    handle = box.commands.run("cat", background=True, stdin=True)
    box.commands.send_stdin(handle.pid, text)
    for stdout, _, _ in handle:
        assert stdout == text
        break
    handle.kill()


def test_sees_the_end_of_its_input(box):
    handle = box.commands.run("cat", background=True, stdin=True)
    box.commands.send_stdin(handle.pid, "first ")
    box.commands.send_stdin(handle.pid, b"second")
    if hasattr(box.commands, "close_stdin"):
        box.commands.close_stdin(handle.pid)
        assert handle.wait().stdout == "first second"
    else:
        handle.kill()


def test_streams_many_inputs_in_order(box):
    if not hasattr(box.commands, "stream_input"):
        pytest.skip("this generation of the SDK has no stream_input")
    handle = box.commands.run("cat", background=True, stdin=True)
    box.commands.stream_input(handle.pid, (f"{n}\n" for n in range(500)))
    box.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "".join(f"{n}\n" for n in range(500))


def test_says_that_the_sandbox_is_gone():
    box = Sandbox.create(timeout=120)
    handle = box.commands.run("sleep 60", background=True)
    box.kill()
    with pytest.raises(TimeoutException, match="sandbox was killed or reached its end of life"):
        handle.wait()


def test_drives_a_terminal(box):
    shown = []
    terminal = box.pty.create(PtySize(rows=24, cols=80), envs={"FROM_CALL": "yes"}, cwd="/")
    box.pty.resize(terminal.pid, PtySize(rows=24, cols=100))
    box.pty.send_stdin(terminal.pid, b'echo "[$FROM_CALL]"; pwd; tput cols; exit\n')
    result = terminal.wait(on_pty=shown.append)
    assert result.exit_code == 0
    text = b"".join(shown).decode()
    assert "[yes]" in text and re.search(r"[\r\n]/\r\n", text) and re.search(r"[\r\n]100\r\n", text)


def test_takes_a_terminal_up_again(box):
    terminal = box.pty.create(PtySize(rows=24, cols=80), envs={"KEPT": "kept"})
    terminal.disconnect()
    again = box.pty.connect(terminal.pid)
    assert again.pid == terminal.pid
    box.pty.send_stdin(terminal.pid, b'echo "[$KEPT]"; exit\n')
    shown = []
    assert again.wait(on_pty=shown.append).exit_code == 0
    assert "[kept]" in b"".join(shown).decode()


def test_kills_a_terminal(box):
    terminal = box.pty.create(PtySize(rows=24, cols=80))
    assert box.pty.kill(terminal.pid) is True
    until(lambda: terminal.pid not in [each.pid for each in box.commands.list()])
    assert box.pty.kill(999_999) is False


def test_works_with_git(box):
    box.git.init("/tmp/repository")
    box.git.configure_user("Ada", "ada@example.com", scope="local", path="/tmp/repository")
    box.files.write("/tmp/repository/a.txt", "a")
    box.git.add("/tmp/repository")
    box.git.commit("/tmp/repository", "Add a")
    assert box.git.status("/tmp/repository").file_status == []
    box.commands.run("rm -rf /tmp/repository")


def test_goes_on_without_its_client(box):
    handle = box.commands.run("sleep 0.7; echo done > after-disconnect", background=True)
    handle.disconnect()
    began = time.monotonic()
    until(lambda: box.files.exists("after-disconnect"))
    assert time.monotonic() - began < 10
