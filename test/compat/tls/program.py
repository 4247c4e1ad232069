"""A user's program over TLS: no URL is given, only a domain, a key and the authority to trust."""

import os
import sys
import threading

from e2b_code_interpreter import Sandbox

port = sys.argv[1]
sandbox = Sandbox.create(timeout=120)
assert sandbox.run_code("x = 20\nx + 1").text == "21"
sandbox.files.write("greeting.txt", "hello")
assert sandbox.files.read("greeting.txt") == "hello"
assert sandbox.is_running()
assert sandbox.get_host(int(port)) == f"{port}-{sandbox.sandbox_id}.{os.environ['E2B_DOMAIN']}"

killer = []


def kill(_message):
    killer.append(threading.Thread(target=sandbox.kill))
    killer[0].start()


try:
    sandbox.run_code("import time; print('going', flush=True); time.sleep(60)", on_stdout=kill)
except Exception as error:
    assert "sandbox" in str(error).lower(), repr(error)
else:
    raise AssertionError("the killed sandbox gave a proper end")
killer[0].join()
assert not sandbox.is_running()
print("all well")
