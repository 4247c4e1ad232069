"""The Java kernel: our class in it, and that it answers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cellbox_kernel import kernelspecs

JAVA = next(row for row in kernelspecs.LANGUAGES if row.name == "java")

needs_java_kernel = pytest.mark.skipif(JAVA.missing() is not None, reason="no Java kernel here")

# Each thread must call its body, which fails each time, more than once.
MANY_THREADS = """
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.rapaio.jupyter.kernel.channels.LoopThread;

class Main {
    public static void main(String[] arguments) throws Exception {
        java.util.logging.LogManager.getLogManager().reset();
        LoopThread.begin();
        for (int started = 0; started < 2000; started++) {
            CountDownLatch calls = new CountDownLatch(2);
            LoopThread thread = new LoopThread("loop", 0, () -> {
                calls.countDown();
                throw new IllegalStateException();
            });
            thread.start();
            if (!calls.await(5, TimeUnit.SECONDS)) throw new AssertionError("thread " + started + " is not running");
            thread.shutdown();
            thread.join(5000);
            if (thread.isAlive()) throw new AssertionError("thread " + started + " does not end");
        }
    }
}
"""

# The body must not be called while the kernel is still getting ready.
TOO_EARLY = """
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.rapaio.jupyter.kernel.channels.LoopThread;

class Main {
    public static void main(String[] arguments) throws Exception {
        AtomicBoolean ready = new AtomicBoolean();
        AtomicBoolean early = new AtomicBoolean();
        CountDownLatch called = new CountDownLatch(1);
        LoopThread thread = new LoopThread("loop", 0, () -> {
            if (!ready.get()) early.set(true);
            called.countDown();
        });
        thread.start();
        if (called.await(300, TimeUnit.MILLISECONDS)) throw new AssertionError("called too early");
        ready.set(true);
        LoopThread.begin();
        if (!called.await(5, TimeUnit.SECONDS) || early.get()) throw new AssertionError("not called, or too early");
        thread.shutdown();
    }
}
"""

# Two that take turns, until one of them never ends its turn.
TURNS = """
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.rapaio.jupyter.kernel.channels.LoopThread;

class Main {
    static final AtomicInteger inside = new AtomicInteger();
    static final AtomicBoolean together = new AtomicBoolean();
    // After so long a wait for its turn a thread goes on without it.
    static final long PATIENCE = TimeUnit.MILLISECONDS.toNanos(200);

    static LoopThread taking(CountDownLatch turns) {
        AtomicLong ended = new AtomicLong(System.nanoTime());
        return new LoopThread("loop", 0, () -> {
            boolean waited = System.nanoTime() - ended.get() >= PATIENCE;
            if (!waited && inside.incrementAndGet() > 1) together.set(true);
            for (int spin = 0; spin < 100; spin++) Thread.onSpinWait();
            if (!waited) inside.decrementAndGet();
            turns.countDown();
            ended.set(System.nanoTime());
        });
    }

    public static void main(String[] arguments) throws Exception {
        CountDownLatch first = new CountDownLatch(20000), second = new CountDownLatch(20000);
        LoopThread one = taking(first), other = taking(second);
        one.start();
        other.start();
        LoopThread.begin();
        if (!first.await(20, TimeUnit.SECONDS) || !second.await(20, TimeUnit.SECONDS)) throw new AssertionError("slow");
        one.shutdown();
        other.shutdown();
        if (together.get()) throw new AssertionError("two at once");

        CountDownLatch busy = new CountDownLatch(1), release = new CountDownLatch(1), through = new CountDownLatch(1);
        LoopThread cell = new LoopThread("cell", 0, () -> {
            busy.countDown();
            try { release.await(); } catch (InterruptedException interrupt) { }
        });
        cell.start();
        busy.await();
        LoopThread control = new LoopThread("control", 0, through::countDown);
        control.start();
        if (!through.await(5, TimeUnit.SECONDS)) throw new AssertionError("held up by a cell");
        control.shutdown();
        cell.shutdown();
        release.countDown();
    }
}
"""

OUT_OF_MEMORY = """
import org.rapaio.jupyter.kernel.channels.LoopThread;

class Main {
    public static void main(String[] arguments) {
        LoopThread.begin();
        new LoopThread("loop", 0, () -> { throw new OutOfMemoryError(); }).start();
    }
}
"""


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("classes")
    assert JAVA.finish(directory) is None
    return directory


def run_java(classes: Path, tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    source = tmp_path / "Main.java"
    source.write_text(program)
    return subprocess.run(["java", "-cp", str(classes), str(source)], capture_output=True, text=True, timeout=60)


@needs_java_kernel
def test_every_channels_thread_runs_and_outlives_a_request_that_fails(classes, tmp_path):
    done = run_java(classes, tmp_path, MANY_THREADS)
    assert (done.returncode, done.stderr) == (0, "")


@needs_java_kernel
def test_no_request_is_read_before_the_kernel_can_handle_it(classes, tmp_path):
    done = run_java(classes, tmp_path, TOO_EARLY)
    assert (done.returncode, done.stderr) == (0, "")


@needs_java_kernel
def test_channels_take_turns_and_none_is_held_up_by_a_long_cell(classes, tmp_path):
    done = run_java(classes, tmp_path, TURNS)
    assert (done.returncode, done.stderr) == (0, "")


@needs_java_kernel
def test_a_channel_that_is_out_of_memory_ends_the_kernel_instead_of_falling_silent(classes, tmp_path):
    assert run_java(classes, tmp_path, OUT_OF_MEMORY).returncode == 1


def test_a_class_that_can_not_be_compiled_makes_java_unavailable_with_the_reason(tmp_path, monkeypatch):
    java = kernelspecs.KernelLanguage("java", "Java", "java", lambda: ["java"], lambda: None, finish=JAVA.finish)
    monkeypatch.setattr(kernelspecs, "LANGUAGES", (java,))
    monkeypatch.setattr(kernelspecs, "_output", lambda command: "error: no such\n  release")
    message = "Java could not compile a part of its kernel: error: no such release"
    assert kernelspecs.write_kernelspecs(tmp_path) == {"java": {"available": False, "missing": message}}
    assert not (tmp_path / "java").exists()


@needs_java_kernel
def test_ten_java_kernels_in_a_row_answer_their_first_request(gateway):
    for _ in range(10):
        kernel = gateway.start_kernel(name="java")
        kernel.socket.settimeout(20)
        assert kernel.run("1 + 1").text == "2"
        kernel.close()
