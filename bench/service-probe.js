'use strict';

/*
 * Loaded into the measured service by `--require`, and only by the bench: answers on the IPC channel how late the event
 * loop's timers were and what memory the process held at most, each since the last reset. Asked with `reset` or `read`.
 */
const fs = require('node:fs');
const { monitorEventLoopDelay } = require('node:perf_hooks');

/** The histogram holds the whole time between two ticks of this timer: what is above it is the delay. */
const RESOLUTION_MS = 10;

// What the service starts is not measured, and sandboxes are none of the bench's business.
delete process.env.NODE_OPTIONS;
const histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
histogram.enable();

const late = (nanoseconds) => Math.max(0, nanoseconds / 1e6 - RESOLUTION_MS);

/** Linux keeps the peak, and forgets it when told to; elsewhere only the peak since the start is known. */
function resetPeak() {
  try {
    fs.writeFileSync('/proc/self/clear_refs', '5');
  } catch {
    // Not Linux, or not allowed: the peak is the one since the start then, which is never too low.
  }
}

function peakBytes() {
  try {
    return Number(/^VmHWM:\s+(\d+) kB/m.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;
  } catch {
    return process.resourceUsage().maxRSS * 1024;
  }
}

process.on('message', (message) => {
  if (message === 'reset') {
    histogram.reset();
    resetPeak();
    process.send({ reset: true });
  } else if (message === 'read') {
    const rssBytes = process.memoryUsage.rss(); // before the peak, which is to be no lower
    process.send({
      rssPeakBytes: peakBytes(),
      rssBytes,
      loopDelayP99Ms: late(histogram.percentile(99)),
      loopDelayMaxMs: late(histogram.max),
    });
  }
});
process.channel?.unref(); // must not keep the service alive
