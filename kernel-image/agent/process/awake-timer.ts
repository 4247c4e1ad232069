const STEP_MS = 1_000;
/** A step that is late by more was not late: the machine stood still. */
const STANDSTILL_MS = 2_000;

/**
 * Calls back after `ms` in which the machine ran. Time in which it stood still, as while its sandbox is paused, does not
 * count, to the second. Returns what cancels it.
 */
export function afterAwake(
  ms: number,
  onElapsed: () => void,
  now: () => number = () => performance.now(),
): () => void {
  let remaining = ms;
  let handle: NodeJS.Timeout;
  const next = () => {
    const step = Math.min(remaining, STEP_MS);
    const since = now();
    handle = setTimeout(() => {
      const late = Math.max(0, now() - since - step);
      remaining -= late > STANDSTILL_MS ? step : step + late;
      if (remaining > 0) next();
      else onElapsed();
    }, step);
  };
  next();
  return () => clearTimeout(handle);
}
