"""What a cell's reply says about its cost, through a real gateway."""

from __future__ import annotations

import pytest

from cellbox_kernel import accounting
from cellbox_kernel.accounting import CellCost

MIB = 1024 * 1024
BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


def cost(kernel, code):
    return kernel.run(code).reply_metadata["cellbox"]


def test_the_cpu_time_of_a_cell_is_its_own(kernel):
    assert 300 <= cost(kernel, BURN)["cpu_ms"] < 2000
    assert cost(kernel, "time.sleep(0.4)")["cpu_ms"] < 200


def test_threads_and_children_that_were_waited_for_count(kernel):
    kernel.run("import subprocess, sys, threading")
    child = f"subprocess.run([sys.executable, '-c', {BURN!r}])"
    assert cost(kernel, child)["cpu_ms"] >= 300
    # The clock of `BURN` is the process's, so two threads of it take as long as one.
    burn = "def burn():\n    end = time.thread_time() + 0.2\n    while time.thread_time() < end: pass\n"
    threads = "ts = [threading.Thread(target=burn) for _ in 'ab']; [t.start() for t in ts]; [t.join() for t in ts]"
    assert cost(kernel, burn + threads)["cpu_ms"] >= 400


def test_the_peak_of_memory_is_of_one_cell_only(kernel):
    before = cost(kernel, "1")["memory_peak_bytes"]
    assert cost(kernel, f"block = b'x' * {400 * MIB}; del block")["memory_peak_bytes"] > before + 390 * MIB
    assert cost(kernel, "1")["memory_peak_bytes"] < before + 100 * MIB


def test_cells_that_fail_or_are_refused_have_a_cost_too(kernel):
    assert set(cost(kernel, "1/0")) == {"cpu_ms", "memory_peak_bytes"}
    assert set(cost(kernel, 7)) == {"cpu_ms", "memory_peak_bytes"}


def test_where_the_peak_can_not_be_reset_it_counts_when_the_cell_raised_it(monkeypatch):
    monkeypatch.setattr(accounting, "_CLEAR_REFS", "/proc/none")
    sizes = iter([(900, 500), (900, 600), (900, 500), (950, 600)])
    monkeypatch.setattr(accounting, "_resident", lambda: next(sizes))
    assert CellCost().figures()["memory_peak_bytes"] == 600
    assert CellCost().figures()["memory_peak_bytes"] == 950


def test_without_a_word_from_the_system_there_is_no_figure_of_memory(monkeypatch):
    monkeypatch.setattr(accounting, "_CLEAR_REFS", "/proc/none")
    monkeypatch.setattr(accounting, "_STATUS", "/proc/none")
    assert set(CellCost().figures()) == {"cpu_ms"}


@pytest.mark.parametrize("taken", [CellCost, CellCost().figures])
def test_counting_costs_less_than_a_tenth_of_a_millisecond(taken):
    def once() -> float:
        started = accounting.time.perf_counter()
        taken()
        return accounting.time.perf_counter() - started

    assert min(once() for _ in range(50)) < 0.0001
