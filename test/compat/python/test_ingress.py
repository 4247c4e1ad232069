"""`network.mask_request_host` and `https_ports` by the official Python SDK, both halves."""

import asyncio
import json
import os
import urllib.request
from importlib.metadata import version

import pytest
from e2b_code_interpreter import AsyncSandbox, Sandbox, SandboxException

MASK = "localhost:${PORT}"
SERVER = """
import http.server, json, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps([self.headers['Host'], self.headers['X-Forwarded-Host']]).encode())
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port)
"""


def told(host):
    """What the program was told, asked at the address that the SDK gives for it."""
    request = urllib.request.Request(os.environ["E2B_API_URL"], headers={"Host": host})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def test_masks_the_host():
    box = Sandbox.create(timeout=120, network={"mask_request_host": MASK})
    port = int("".join(box.run_code(SERVER).logs.stdout))
    assert told(box.get_host(port)) == [f"localhost:{port}", box.get_host(port)]
    assert box.get_info().network["mask_request_host"] == MASK
    box.kill()


def test_masks_the_host_of_an_async_sandbox():
    async def program():
        box = await AsyncSandbox.create(timeout=120, network={"mask_request_host": "app-${PORT}.example"})
        port = int("".join((await box.run_code(SERVER)).logs.stdout))
        assert told(box.get_host(port)) == [f"app-{port}.example", box.get_host(port)]
        await box.kill()

    asyncio.run(program())


def test_refuses_a_mask_that_is_no_host():
    for mask in ("a b", "a\r\nX-Evil: 1", "a:99999"):
        with pytest.raises(SandboxException, match="400: network.maskRequestHost"):
            Sandbox.create(timeout=120, network={"mask_request_host": mask})


@pytest.mark.skipif(version("e2b").startswith("2.45"), reason="this generation has no such option")
def test_takes_ports_that_speak_tls():
    box = Sandbox.create(timeout=120, network={"https_ports": [8443]})
    assert box.get_info().network["https_ports"] == [8443]
    box.kill()
    with pytest.raises(SandboxException, match="400: network.httpsPorts: 49983"):
        Sandbox.create(timeout=120, network={"https_ports": [49983]})
