"""`network` and `update_network` by the official Python SDK, both halves. Nothing is sent beyond the host."""

import asyncio
import os

import pytest
from e2b_code_interpreter import AsyncSandbox, NotFoundException, Sandbox, SandboxException

DENIED = "203.0.113.9"
ALLOWED = "198.51.100.9"
PROBE = f"""
import errno, socket
s = socket.socket(); s.settimeout(2)
try:
    s.connect(('{DENIED}', 80)); print('open')
except TimeoutError:
    print('ETIMEDOUT')
except OSError as error:
    print(errno.errorcode.get(error.errno, str(error)))
"""
on_docker = pytest.mark.skipif(os.environ.get("CELLBOX_TEST_RUNTIME") == "local", reason="has no network rules")


def outcome(execution):
    return "".join(execution.logs.stdout).strip()


@on_docker
def test_rules_at_the_create():
    box = Sandbox.create(timeout=120, network={"allow_out": [ALLOWED], "deny_out": ["0.0.0.0/0"]})
    assert outcome(box.run_code(PROBE)) == "ECONNREFUSED"
    network = box.get_info().network
    assert network["allow_out"] == [ALLOWED]
    assert network["deny_out"] == ["0.0.0.0/0"]
    box.kill()


@on_docker
def test_update_network():
    box = Sandbox.create(timeout=120)
    box.update_network({"deny_out": [DENIED]})
    assert outcome(box.run_code(PROBE)) == "ECONNREFUSED"
    Sandbox.update_network(box.sandbox_id, {"allow_internet_access": False})
    info = box.get_info()
    assert info.allow_internet_access is False
    assert not info.network.get("deny_out")
    assert outcome(box.run_code(PROBE)) == "ECONNREFUSED"
    with pytest.raises(SandboxException, match="a domain needs 0.0.0.0/0 in denyOut"):
        box.update_network({"allow_out": ["allowed.example"]})
    box.kill()
    with pytest.raises(NotFoundException):
        box.update_network({})


ASK = """
import urllib.request as r
try:
    print(r.urlopen('http://{}/', timeout=10).status)
except Exception as error:
    print(error)
"""


@on_docker
def test_domains():
    # Of names that are not on the list nobody is asked, so nothing leaves this host.
    network = {"allow_out": ["allowed.example"], "deny_out": ["0.0.0.0/0"]}
    box = Sandbox.create(timeout=120, network=network)
    told = box.get_info().network
    assert (told["allow_out"], told["deny_out"]) == (["allowed.example"], ["0.0.0.0/0"])
    assert outcome(box.run_code(ASK.format("other.example"))) == "HTTP Error 403: Forbidden"
    box.update_network({"allow_out": ["*.later.example"], "deny_out": ["0.0.0.0/0"]})
    assert outcome(box.run_code(ASK.format("allowed.example"))) == "HTTP Error 403: Forbidden"
    box.kill()
    with pytest.raises(SandboxException, match="a domain needs 0.0.0.0/0 in denyOut"):
        Sandbox.create(timeout=120, network={"allow_out": ["allowed.example"]})


@on_docker
def test_update_network_of_an_async_sandbox():
    async def program():
        box = await AsyncSandbox.create(timeout=120, allow_internet_access=False)
        assert outcome(await box.run_code(PROBE)) == "ENETUNREACH"
        await box.update_network({"deny_out": [DENIED]})
        assert outcome(await box.run_code(PROBE)) == "ECONNREFUSED"
        await box.kill()

    asyncio.run(program())


@pytest.mark.skipif(os.environ.get("CELLBOX_TEST_RUNTIME") != "local", reason="has network rules")
def test_rules_are_refused_on_the_local_runtime():
    with pytest.raises(SandboxException, match="docker runtime"):
        Sandbox.create(timeout=120, network={"deny_out": [DENIED]})
