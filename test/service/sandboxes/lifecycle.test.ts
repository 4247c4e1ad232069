import { LIFECYCLE, keptIn, phaseAfter, shownAs } from '../../../service/sandboxes/lifecycle';
import type { Change, Phase } from '../../../service/sandboxes/lifecycle';

const PHASES = Object.keys(LIFECYCLE) as Phase[];
const CHANGES: Change[] = [
  ...(['pause', 'frozen', 'freeze-failed', 'resume', 'thawed', 'thaw-failed'] as const),
  ...(['halt', 'halted', 'halt-failed', 'boot', 'booted', 'boot-failed', 'end'] as const),
];

describe('the phases of a sandbox', () => {
  it('go through a pause and back', () => {
    const round: Change[] = ['pause', 'frozen', 'resume', 'thawed'];
    expect(round.reduce(phaseAfter, 'running')).toBe('running');
  });

  it('go through a pause that keeps files alone, and back', () => {
    const round: Change[] = ['halt', 'halted', 'boot', 'booted'];
    expect(round.reduce(phaseAfter, 'running')).toBe('running');
  });

  it('go from a pause with memory to a start without it, and never back to that memory', () => {
    const failed: Change[] = ['pause', 'frozen', 'boot', 'boot-failed'];
    const phase = failed.reduce(phaseAfter, 'running');
    expect(phase).toBe('halted');
    expect(() => phaseAfter(phase, 'resume')).toThrow(/halted/);
  });

  it.each<[Phase, Change, Phase]>([
    ['pausing', 'freeze-failed', 'running'],
    ['resuming', 'thaw-failed', 'paused'],
    ['halting', 'halt-failed', 'running'],
    ['booting', 'boot-failed', 'halted'],
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
    const shown = PHASES.map((phase) => [phase, shownAs(phase), keptIn(phase)]);
    expect(shown).toEqual([
      ['running', 'running', undefined],
      ['pausing', 'paused', 'full'],
      ['paused', 'paused', 'full'],
      ['resuming', 'paused', 'full'],
      ['halting', 'paused', 'filesystem'],
      ['halted', 'paused', 'filesystem'],
      ['booting', 'paused', 'filesystem'],
      ['ended', undefined, undefined],
    ]);
  });
});
