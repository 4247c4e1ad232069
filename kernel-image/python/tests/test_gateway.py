"""The gateway process and its HTTP API."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from gateway_client import TOKEN, Gateway, Kernel
from websocket import WebSocketBadStatusException

ENV = {"WEIRD.name": 'it\'s "quoted"\n$HOME \\ é😀', "CELLBOX_ALLOWED": "asked for", "EMPTY": ""}
SHOW = "import os, json; print(json.dumps([os.getcwd(), {k: os.environ.get(k) for k in %r}]))"


def started_with(kernel, names=ENV):
    cwd, env = json.loads("".join(kernel.run(SHOW % list(names)).stdout))
    return cwd, env


def test_the_application_starts_without_a_grammar_that_nobody_asks_for():
    script = "import sys; from cellbox_kernel.gateway import _import_application as load; load(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert {"jsonschema._format", "lark"} & set(loaded.stdout.split()) == {"jsonschema._format"}


def test_every_route_wants_the_token(gateway):
    for method, path in [("GET", "/api/kernels"), ("POST", "/api/kernels"), ("GET", "/api"), ("GET", "/api/sessions")]:
        assert gateway.request(method, path, token="wrong")[0] == 401
        assert gateway.request(method, path, token="")[0] == 401


def test_kernels_start_with_any_environment_and_directory_and_keep_them(gateway, tmp_path):
    kernel = gateway.start_kernel(name="python3", env=ENV, cwd=str(tmp_path))
    assert started_with(kernel) == (str(tmp_path), ENV)

    gateway.request("POST", f"/api/kernels/{kernel.id}/restart")
    assert started_with(kernel) == (str(tmp_path), ENV)

    os.kill(int(kernel.run("os.getpid()").text), signal.SIGKILL)
    kernel.wait_for_status("restarting")
    assert started_with(kernel) == (str(tmp_path), ENV)
    kernel.close()


def test_a_kernel_restarts_in_the_home_directory_when_its_own_was_deleted(gateway, home, tmp_path):
    directory = tmp_path / "gone"
    directory.mkdir()
    kernel = gateway.start_kernel(cwd=str(directory))
    directory.rmdir()
    assert gateway.request("POST", f"/api/kernels/{kernel.id}/restart")[0] == 200
    assert started_with(kernel)[0] == home
    kernel.close()


def test_a_kernel_that_is_restarted_before_it_listens_is_not_ended_by_what_the_old_one_did_not_hear(gateway):
    others = set(psutil.Process(gateway.process.pid).children(recursive=True))
    kernel_id = gateway.request("POST", "/api/kernels", {})[1]["id"]
    (process,) = set(psutil.Process(gateway.process.pid).children(recursive=True)) - others
    process.suspend()
    assert gateway.request("POST", f"/api/kernels/{kernel_id}/restart")[0] == 200
    kernel = Kernel(gateway, kernel_id)
    assert kernel.run("1 + 1").text == "2"
    assert gateway.request("GET", f"/api/kernels/{kernel_id}")[1]["last_ending"] is None
    kernel.close()


def test_kernels_inherit_the_sandboxs_environment_but_not_our_secrets(gateway, home):
    kernel = gateway.start_kernel()
    names = ["CELLBOX_GATEWAY_TOKEN", "CELLBOX_GATEWAY_PORT", "CELLBOX_OTHER_SECRET", "INHERITED", "HOME", "PWD"]
    secrets = {"CELLBOX_GATEWAY_TOKEN": None, "CELLBOX_GATEWAY_PORT": None, "CELLBOX_OTHER_SECRET": None}
    assert started_with(kernel, names) == (home, secrets | {"INHERITED": "yes", "HOME": home, "PWD": home})
    assert kernel.run(f"any({TOKEN!r} in value for value in os.environ.values())").text == "False"
    assert kernel.run("all(os.environ.get(k) for k in ('USER', 'LOGNAME', 'PATH', 'SHELL'))").text == "True"
    kernel.close()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"cwd": "/no/such/directory"}, "The directory /no/such/directory does not exist."),
        ({"cwd": "/etc/passwd"}, "/etc/passwd is not a directory."),
        ({"cwd": "relative"}, "cwd must be an absolute path: 'relative'"),
        ({"cwd": 7}, "cwd must be a string"),
        ({"env": ["A"]}, "env must be an object of strings"),
        ({"env": {"A": 1}}, "env: the value of 'A' must be a string"),
        ({"env": {"A=B": "1"}}, "env: 'A=B' is not a usable variable name"),
        ({"env": {"A": "\0"}}, "env: the value of 'A' contains a NUL character"),
        ({"env": {"A": "\ud800"}}, "env: 'A' contains a lone surrogate"),
        ({"name": 7}, "name must be a string"),
        ([], "The body must be a JSON object"),
        (b"{nonsense", "Invalid JSON in body of request"),
    ],
)
def test_a_request_that_can_not_be_met_is_refused_with_the_reason(gateway, body, message):
    status, answer = gateway.request("POST", "/api/kernels", body)
    assert (status, answer["message"]) == (400, message)


@pytest.mark.parametrize("name", ["cobol", "../../etc", "cöbol"])
def test_an_unknown_kernel_is_refused_by_name(gateway, name):
    assert gateway.request("POST", "/api/kernels", {"name": name}) == (
        404,
        {
            "message": f"The '{name}' kernel is not available. Please pick another suitable kernel instead, "
            "or install that kernel.",
            "short_message": f"{name} not found",
        },
    )


def test_a_websocket_to_an_unknown_kernel_is_refused_with_the_reason(gateway):
    with pytest.raises(WebSocketBadStatusException) as refusal:
        Kernel(gateway, "00000000-0000-0000-0000-000000000000")
    assert refusal.value.status_code == 404
    answer = json.loads(refusal.value.resp_body)
    assert answer["message"] == "Kernel does not exist: 00000000-0000-0000-0000-000000000000"


def test_kernels_are_listed_and_a_deleted_one_is_gone(gateway):
    kernel = gateway.start_kernel()
    assert kernel.id in [model["id"] for model in gateway.request("GET", "/api/kernels")[1]]
    kernel.close()
    assert kernel.id not in [model["id"] for model in gateway.request("GET", "/api/kernels")[1]]
    assert gateway.request("DELETE", f"/api/kernels/{kernel.id}")[0] == 404


def test_a_kernels_model_shows_the_clients_metadata_again(gateway):
    metadata = {"cellbox": {"id": "context", "cwd": "/h\u00e9"}}
    kernel = gateway.start_kernel(metadata=metadata)
    gateway.request("POST", f"/api/kernels/{kernel.id}/restart")
    _, models = gateway.request("GET", "/api/kernels")
    assert [model["metadata"] for model in models if model["id"] == kernel.id] == [metadata]


@pytest.mark.parametrize("metadata", ["text", {"a": "x" * 20_000}])
def test_metadata_that_is_no_object_or_too_large_is_refused(gateway, metadata):
    status, answer = gateway.request("POST", "/api/kernels", {"metadata": metadata})
    assert status == 400
    assert "metadata must be an object" in answer["message"]


def test_sigterm_ends_the_gateway_and_its_kernels(tmp_path):
    gateway = Gateway(str(tmp_path))
    kernel = gateway.start_kernel()
    msg_id = kernel.run("import os; os.getpid()").text
    kernel.send_code("while True: pass")
    assert gateway.close() == 0
    assert not alive(int(msg_id))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the parent-death signal is Linux's")
def test_kernels_die_with_a_killed_gateway(tmp_path):
    # A kernel that, unlike ipykernel, does not look after its parent itself.
    spec = tmp_path / "kernels" / "sleeper" / "kernel.json"
    spec.parent.mkdir(parents=True)
    os.mkfifo(tmp_path / "pid")
    argv = ["/bin/sh", "-c", "echo $$ > $HOME/pid; exec sleep 300"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Sleeper", "language": "none"}))
    gateway = Gateway(str(tmp_path), {"JUPYTER_PATH": str(tmp_path)})
    assert gateway.request("POST", "/api/kernels", {"name": "sleeper"})[0] == 201
    pidfd = os.pidfd_open(int((tmp_path / "pid").read_text()))
    gateway.process.kill()
    gateway.process.wait()
    assert exited_within(pidfd, 5)


def test_the_gateway_ends_when_its_parent_does(tmp_path):
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\n"
            "child = subprocess.Popen([sys.executable, '-m', 'cellbox_kernel.gateway'], stdout=subprocess.PIPE)\n"
            "child.stdout.readline(); child.stdout.readline(); print(child.pid, flush=True); sys.stdin.read()",
        ],
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "CELLBOX_GATEWAY_PORT": "0",
            "CELLBOX_GATEWAY_TOKEN": TOKEN,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pidfd = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    assert exited_within(pidfd, 10)


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({"CELLBOX_GATEWAY_PORT": "http"}, "CELLBOX_GATEWAY_PORT must be a port number"),
        ({"CELLBOX_GATEWAY_TOKEN": ""}, "CELLBOX_GATEWAY_TOKEN is not set"),
        ({}, "can't listen on 127.0.0.1:"),
    ],
)
def test_a_gateway_that_can_not_start_says_why_in_one_line(gateway, tmp_path, env, complaint):
    settings = {"CELLBOX_GATEWAY_PORT": str(gateway.port), "CELLBOX_GATEWAY_TOKEN": TOKEN, "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "cellbox_kernel.gateway"],
        env={**os.environ, **settings, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert complaint in run.stderr and len(run.stderr.splitlines()) == 1


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A zombie waits for a parent that does not collect it; it runs nothing any more.
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


def exited_within(pidfd: int, seconds: float) -> bool:
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)
