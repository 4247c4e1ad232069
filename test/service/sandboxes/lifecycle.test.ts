import { LIFECYCLE, phaseAfter, shownAs } from '../../../service/sandboxes/lifecycle';
import type { Change, Phase } from '../../../service/sandboxes/lifecycle';

const PHASES = Object.keys(LIFECYCLE) as Phase[];
const CHANGES: Change[] = ['pause', 'frozen', 'freeze-failed', 'resume', 'thawed', 'thaw-failed', 'end'];

describe('the phases of a sandbox', () => {
  it('go through a pause and back', () => {
    const round: Change[] = ['pause', 'frozen', 'resume', 'thawed'];
    expect(round.reduce(phaseAfter, 'running')).toBe('running');
  });

  it.each<[Phase, Change, Phase]>([
    ['pausing', 'freeze-failed', 'running'],
    ['resuming', 'thaw-failed', 'paused'],
  ])('go back where they came from: %s, %s', (phase, change, next) => {
    expect(phaseAfter(phase, change)).toBe(next);
  });

  it.each(PHASES.filter((phase) => phase !== 'ended'))('can end at any time: %s', (phase) => {
    expect(phaseAfter(phase, 'end')).toBe('ended');
  });

  it('have no way back from the end', () => {
    for (const change of CHANGES) expect(() => phaseAfter('ended', change)).toThrow(/ended/);
  });

  it('let nothing happen twice', () => {
    for (const phase of PHASES) {
      for (const change of CHANGES) {
        const next = LIFECYCLE[phase][change];
        if (next !== undefined) expect(LIFECYCLE[next][change]).toBeUndefined();
      }
    }
  });

  it('show as running only while it can be used, and not at all once it has ended', () => {
    expect(PHASES.map(shownAs)).toEqual(['running', 'paused', 'paused', 'paused', undefined]);
  });
});
