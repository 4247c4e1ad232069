const EVERY_MS = 100;

/**
 * Tells how late a regular timer fires: how long anything else that happens now waits, too. Cheap enough to be always
 * on. `close` ends it; it does not keep the process alive.
 */
export function watchEventLoop(onDelay: (seconds: number) => void): { close(): void } {
  let expected = performance.now() + EVERY_MS;
  const timer = setInterval(() => {
    const now = performance.now();
    onDelay(Math.max(0, now - expected) / 1000);
    expected = now + EVERY_MS;
  }, EVERY_MS).unref();
  return { close: () => clearInterval(timer) };
}
