package org.rapaio.jupyter.kernel.channels;

import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Calls a channel's body again and again until `shutdown`. Stands in for the class of this name in
 * rapaio-jupyter-kernel 3.0.1, because of which one kernel in ten never answered:
 *
 * - There the thread is started first and marked as running afterwards. One that looks sooner ends at once, and nobody
 *   reads its channel. Here it runs from the beginning.
 * - There an exception ends the thread. A request that arrives before the kernel has its handlers causes one.
 */
public final class LoopThread extends Thread {
    private static final Logger LOGGER = Logger.getLogger(LoopThread.class.getName());

    private volatile boolean running = true;
    private final long sleepMillis;
    private final Runnable body;

    public LoopThread(String name, long sleepMillis, Runnable body) {
        super(name);
        this.sleepMillis = sleepMillis;
        this.body = body;
    }

    @Override
    public void run() {
        while (running) {
            try {
                body.run();
            } catch (RuntimeException exception) {
                // After `shutdown` it only says that the socket is closed.
                if (running) LOGGER.log(Level.SEVERE, getName() + " could not handle a message", exception);
            } catch (Error error) {
                // Out of memory, as a rule. A kernel that is gone is replaced, one that is mute would stay.
                Runtime.getRuntime().halt(1);
            }
            try {
                Thread.sleep(sleepMillis);
            } catch (InterruptedException interrupt) {
                return;
            }
        }
    }

    /** Lets the thread end after the call of the body that it is in. */
    public void shutdown() {
        running = false;
    }
}
