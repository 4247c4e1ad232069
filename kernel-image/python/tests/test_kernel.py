"""The Python kernel, through a real gateway."""

from __future__ import annotations

import pytest


def test_a_cells_environment_ends_with_the_cell(kernel):
    kernel.run("import os; os.environ['BEFORE'] = 'own'")
    value = "b'a\"\n\\ $X é😀"
    execution = kernel.run("os.environ['BEFORE'], os.environ['NEW']", env={"BEFORE": value, "NEW": ""})
    assert execution.text == repr((value, ""))
    assert kernel.run("os.environ['BEFORE'], os.environ.get('NEW')").text == "('own', None)"


def test_what_a_cell_sets_itself_stays_and_what_it_was_given_does_not(kernel):
    kernel.run("import os; os.environ['OTHER'] = '1'; os.environ['GIVEN'] = 'changed'; del os.environ['TWICE']")
    kernel.run("import os; os.environ['OTHER'] = '2'; os.environ['GIVEN'] = 'changed'", env={"GIVEN": "x"})
    assert kernel.run("os.environ['OTHER'], os.environ.get('GIVEN')").text == "('2', 'changed')"


def test_a_cells_environment_ends_when_the_cell_fails_or_is_interrupted(kernel):
    assert kernel.run("1/0", env={"E1": "x"}).error == ("ZeroDivisionError", "division by zero")
    msg_id = kernel.send_code(
        "import time; print('go', flush=True); time.sleep(60)", {"cellbox": {"env": {"E1": "x", "PATH": "/x"}}}
    )
    while kernel.receive()[1]["header"]["msg_type"] != "stream":
        pass
    kernel.gateway.request("POST", f"/api/kernels/{kernel.id}/interrupt")
    assert kernel.collect(msg_id).error[0] == "KeyboardInterrupt"
    assert kernel.run("import os; os.environ.get('E1'), os.environ['PATH'] == '/x'").text == "(None, False)"


@pytest.mark.parametrize("env", [{"A": 1}, {"A\0": ""}, {"": "x"}, ["A"], {"A": "\ud800"}])
def test_an_environment_no_process_can_have_is_an_error_of_that_cell_only(kernel, env):
    execution = kernel.run("1", env=env)
    assert execution.error[0] == "ValueError" and execution.error[1].startswith("env")
    assert execution.reply["status"] == "error"
    assert kernel.run("1").text == "1"


@pytest.mark.parametrize(
    ("code", "name"), [("print('\ud800')", "UnicodeEncodeError"), (7, "TypeError"), ("a\0b", "SyntaxError")]
)
def test_code_that_is_no_source_text_is_an_error_of_that_cell_only(kernel, code, name):
    assert kernel.run(code).error[0] in (name, "ValueError")
    assert kernel.run("1").text == "1"


def test_the_namespace_starts_empty_and_without_the_zygote_no_library_is_loaded(gateway):
    kernel = gateway.start_kernel(env={"PYTHONHASHSEED": "5"})  # which no fork can have
    assert kernel.run("%who").stdout == ["Interactive namespace is empty.\n"]
    loaded = "import sys; [m for m in ('numpy', 'pandas', 'matplotlib', 'PIL', 'pydantic') if m in sys.modules]"
    assert kernel.run(loaded).text == "[]"
    kernel.close()


def test_executions_count_from_one_also_when_they_fail(gateway):
    kernel = gateway.start_kernel()
    counts = [kernel.run(code).reply["execution_count"] for code in ("!pwd -", "1 +", "x", "1")]
    assert counts == [1, 2, 3, 4]
    kernel.run("y = 1", silent=True)
    assert kernel.run("_4, y").reply["execution_count"] == 5
    kernel.close()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_one_print_is_one_message(kernel, stream):
    for _ in range(10):
        execution = kernel.run(f"import sys; print(1, file=sys.{stream})")
        assert getattr(execution, stream) == ["1\n"]


def test_output_of_child_processes_is_whole_and_inside_its_cell(kernel):
    for _ in range(5):
        execution = kernel.run("import subprocess; _ = subprocess.run(['echo', 'é😀' * 2000 + '|'])")
        assert "".join(execution.stdout) == "é😀" * 2000 + "|\n"
    assert "".join(kernel.run("import os; _ = os.system('echo no >&2')").stderr) == "no\n"


def test_a_cell_ends_after_the_last_words_of_its_children_were_read(gateway):
    kernel = gateway.start_kernel()
    # Only the thread that reads what they write is slow.
    slow = "import os, sys, time, threading; o = sys.stdout; fast = o.write\n"
    slow += "def write(text):\n    if threading.current_thread() is o.watch_fd_thread: time.sleep(0.2)\n"
    kernel.run(slow + "    return fast(text)\no.write = write")
    assert kernel.run("_ = os.write(1, b'last words')").stdout == ["last words"]
    kernel.close()


def test_a_timer_of_an_earlier_cell_does_not_cut_a_print_in_two(kernel):
    code = "import sys; o = sys.stdout; o.write('1'); o._flush_if_still(o._generation - 1); _ = o.write('\\n')"
    assert kernel.run(code).stdout == ["1\n"]


def test_lone_surrogates_are_replaced_wherever_they_appear(kernel):
    assert kernel.run(r"print('a\ud800b')").stdout == ["a\ufffdb\n"]
    assert kernel.run(r"raise ValueError('a\ud800b')").error == ("ValueError", "a\ufffdb")
    assert kernel.run(r"display({'text/plain': 'a\ud800b'}, raw=True)").text == "a\ufffdb"


def test_values_without_a_json_form_do_not_stop_a_display(kernel):
    execution = kernel.run("display({'application/json': {'a': object, 1: {2}, 'n': float('nan')}}, raw=True)")
    assert execution.bundle == {"application/json": {"a": "<class 'object'>", "1": [2], "n": None}}
    assert execution.stderr == []


def test_an_indented_block_runs_and_shows_its_last_value(kernel):
    assert kernel.run("\n    a = 1\n    for i in range(2):\n        a += i\n    a\n    ").text == "2"


def test_reading_from_stdin_is_refused(kernel):
    assert kernel.run("input()").error == (
        "StdinNotImplementedError",
        "raw_input was called, but this frontend does not support input requests.",
    )


def test_tracebacks_have_no_colours(kernel):
    error = kernel.run("def f():\n    1/0\nf()").of_type("error")[0]
    assert "\x1b" not in "".join(error["traceback"])
    assert "ZeroDivisionError: division by zero" in "".join(error["traceback"])


def test_long_sequences_are_not_cut(kernel):
    assert kernel.run("list(range(3000))").text.count(",") == 2999


def test_a_thread_that_prints_after_its_cell_does_not_disturb_the_next(kernel):
    kernel.run("import threading; go = threading.Event()")
    kernel.run("t = threading.Thread(target=lambda: (go.wait(), print('late'))); t.start()")
    assert kernel.run("go.set(); t.join(); 5").text == "5"


def test_top_level_await_and_magics_work(kernel):
    assert kernel.run("import asyncio\nawait asyncio.sleep(0, 'done')").text == "'done'"
    assert kernel.run("%%bash\necho $X", env={"X": "from bash"}).stdout == ["from bash\n"]
