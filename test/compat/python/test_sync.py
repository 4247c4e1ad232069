"""The official Python SDK, unmodified, told where the service is by environment variables only."""

import json
import threading
import uuid
from importlib.metadata import version

import pytest
from e2b_code_interpreter import NotFoundException, Sandbox, SandboxException, TimeoutException

from programs import ANALYSIS, CSV, TOTALS


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox.create(timeout=600, envs={"TEST_ENV_VAR": "supertest"})
    yield box
    box.kill()


def test_runs_the_whole_program_of_the_readme():
    box = Sandbox.create(timeout=120)
    box.files.write("/home/user/sales.csv", CSV)
    assert box.files.read("sales.csv") == CSV

    printed, results = [], []

    def on_stdout(message):
        printed.append(message.line)
        box.files.write("heard", "")

    execution = box.run_code(ANALYSIS, on_stdout=on_stdout, on_result=results.append, timeout=60)
    assert execution.error is None
    assert "".join(printed) == "2024 17\n2025 23\n"
    charts = [result for result in results if result.png]
    assert [chart.chart.type.value for chart in charts] == ["bar", "line"]
    assert [(each.label, each.value) for each in charts[0].chart.elements] == TOTALS
    table = next(result for result in results if result.is_main_result)
    assert table.data == {"city": ["Bergen", "Oslo"], "sales": [16, 24]}
    assert "<table" in table.html and "Bergen" in table.text

    assert "24" in box.run_code("totals.sales.max()").text
    other = box.create_code_context()
    assert box.run_code("totals", context=other).error.name == "NameError"

    assert box.kill() is True
    assert box.is_running() is False
    with pytest.raises(TimeoutException):
        box.run_code("1")
    assert box.kill() is False


def test_failed_cells_count_and_nothing_else_does(sandbox):
    context = sandbox.create_code_context()
    assert sandbox.run_code("os.system('pwd')))", context=context).error.name == "SyntaxError"
    second = sandbox.run_code("!pwd", context=context)
    assert second.execution_count == 2
    assert "".join(second.logs.stdout).strip() == "/home/user"


def test_environment_of_sandbox_and_execution(sandbox):
    show = "import os; os.environ.get('{}', 'default')".format
    assert sandbox.run_code(show("TEST_ENV_VAR")).text == "supertest"
    assert sandbox.run_code(show("FOO"), envs={"FOO": "bar"}).text == "bar"
    assert sandbox.run_code(show("FOO")).text == "default"
    assert sandbox.run_code(show("TEST_ENV_VAR"), envs={"TEST_ENV_VAR": "other"}).text == "other"
    assert sandbox.run_code(show("TEST_ENV_VAR")).text == "supertest"


def test_chart_reaches_to_json(sandbox):
    execution = sandbox.run_code("import matplotlib.pyplot as plt\nplt.scatter([1, 2], [3, 4]); plt.show()")
    assert json.loads(execution.to_json())["results"][0]["chart"]["type"] == "scatter"


def test_contexts(sandbox):
    context = sandbox.create_code_context(language="python", cwd="/tmp")
    assert sandbox.list_code_contexts()[-1].id == context.id
    sandbox.run_code("x = 1", context=context)
    sandbox.restart_code_context(context)
    assert sandbox.run_code("x", context=context).error.value == "name 'x' is not defined"
    sandbox.remove_code_context(context)
    assert context.id not in [each.id for each in sandbox.list_code_contexts()]
    with pytest.raises(NotFoundException):
        sandbox.run_code("1", context=context)


def test_timeout_then_usable():
    box = Sandbox.create(timeout=60)
    with pytest.raises(TimeoutException):
        box.run_code("import time; time.sleep(300)", timeout=2)
    assert box.run_code("1 + 1", timeout=10).text == "2"
    box.kill()


def test_killed_while_running():
    box = Sandbox.create(timeout=60)
    started = threading.Event()

    def kill():
        assert started.wait(30)
        box.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TimeoutException, match="sandbox was killed while the request was in progress"):
        box.run_code(
            "print('go', flush=True)\nimport time; time.sleep(300)",
            timeout=300,
            on_stdout=lambda _: started.set(),
        )
    killer.join()


def test_secure_without_public_traffic():
    box = Sandbox.create(timeout=60, network={"allow_public_traffic": False})
    assert box.run_code("x = 1; x").text == "1"
    context = box.create_code_context()
    assert box.list_code_contexts()[-1].id == context.id
    box.kill()


def test_list_connect_and_info():
    box = Sandbox.create(timeout=60, metadata={"suite": "sync b c"})
    assert box.get_info().metadata == {"suite": "sync b c"}
    from e2b_code_interpreter import SandboxQuery

    page = Sandbox.list(query=SandboxQuery(metadata={"suite": "sync b c"}))
    assert [each.sandbox_id for each in page.next_items()] == [box.sandbox_id]
    box.run_code("kept = 41")
    assert Sandbox.connect(box.sandbox_id).run_code("kept + 1").text == "42"
    box.kill()


@pytest.mark.skipif(version("e2b").startswith("2.45"), reason="this generation has no such option")
def test_repeats_a_create_with_its_key():
    key = str(uuid.uuid4())
    box = Sandbox.create(timeout=60, idempotency_key=key)
    assert Sandbox.create(timeout=60, idempotency_key=key).sandbox_id == box.sandbox_id
    with pytest.raises(SandboxException, match="409"):
        Sandbox.create(timeout=61, idempotency_key=key)
    box.kill()
