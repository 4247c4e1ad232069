package org.rapaio.jupyter.kernel.channels;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.ReentrantLock;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Calls a channel's body again and again until `shutdown`. Stands in for the class of this name in
 * rapaio-jupyter-kernel 3.0.1, because of which one kernel in ten never answered:
 *
 * - There the thread is started first and marked as running afterwards. One that looks sooner ends at once, and nobody
 *   reads its channel. Here it runs from the beginning.
 * - There it reads before the kernel knows what to do with a request, which is then lost. Here it waits for `begin`.
 * - There the threads work at the same time, although the control channel's replies leave through the shell's socket,
 *   which is not made for that, and bear the address of whichever request came last. Here they take turns.
 * - There an exception ends the thread.
 */
public final class LoopThread extends Thread {
    private static final Logger LOGGER = Logger.getLogger(LoopThread.class.getName());
    private static final CountDownLatch BEGUN = new CountDownLatch(1);

    private static final ReentrantLock TURN = new ReentrantLock();
    // Milliseconds. A cell's turn may last for hours; a shutdown must get through all the same.
    private static final long TURN_PATIENCE = 200;

    private volatile boolean running = true;
    private final long sleepMillis;
    private final Runnable body;

    public LoopThread(String name, long sleepMillis, Runnable body) {
        super(name);
        this.sleepMillis = sleepMillis;
        this.body = body;
    }

    /** Lets all threads, present and future, do their work. */
    public static void begin() {
        BEGUN.countDown();
    }

    @Override
    public void run() {
        try {
            BEGUN.await();
            while (running) {
                boolean alone = TURN.tryLock(TURN_PATIENCE, TimeUnit.MILLISECONDS);
                try {
                    callBody();
                } finally {
                    if (alone) TURN.unlock();
                }
                Thread.sleep(sleepMillis);
            }
        } catch (InterruptedException interrupt) {
            // Asked to end.
        }
    }

    private void callBody() {
        try {
            body.run();
        } catch (RuntimeException exception) {
            // After `shutdown` it only says that the socket is closed.
            if (running) LOGGER.log(Level.SEVERE, getName() + " could not handle a message", exception);
        } catch (Error error) {
            // Out of memory, as a rule. A kernel that is gone is replaced, one that is mute would stay.
            Runtime.getRuntime().halt(1);
        }
    }

    /** Lets the thread end after the call of the body that it is in. */
    public void shutdown() {
        running = false;
    }
}
