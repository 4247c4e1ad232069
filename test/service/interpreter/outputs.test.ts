import type { KernelMessage } from '@jupyterlab/services/lib/kernel';
import { toErrorEvent, toOutputEvent, toTimestamp } from '../../../service/interpreter/outputs';

describe('toTimestamp', () => {
  it.each([
    ['2026-11-21T03:19:47.160917Z', '2026-11-21T03:19:47.160917+00:00'],
    ['2026-11-21T03:19:47.160917+00:00', '2026-11-21T03:19:47.160917+00:00'],
    ['2026-11-21T03:19:47.160917', '2026-11-21T03:19:47.160917+00:00'],
    ['2026-11-21T03:19:47Z', '2026-11-21T03:19:47.000000+00:00'],
    ['2026-11-21T03:19:47.5Z', '2026-11-21T03:19:47.500000+00:00'],
    ['2026-11-21T03:19:47.123456789Z', '2026-11-21T03:19:47.123456+00:00'],
    ['2026-11-21T05:19:47.160917+02:00', '2026-11-21T03:19:47.160917+00:00'],
    ['2026-11-20T22:49:47.25-0430', '2026-11-21T03:19:47.250000+00:00'],
  ])('writes %s as %s', (date, timestamp) => {
    expect(toTimestamp(date)).toBe(timestamp);
  });

  it.each([[undefined], [''], [0], ['yesterday'], ['2026-99-99T99:99:99+01:00']])(
    'takes now for %p',
    (date) => {
      const now = (): Date => new Date('2026-01-02T03:04:05.006Z');
      expect(toTimestamp(date, now)).toBe('2026-01-02T03:04:05.006000+00:00');
    },
  );
});

describe('toErrorEvent', () => {
  it('joins the traceback without anything between', () => {
    expect(toErrorEvent({ ename: 'E', evalue: 'v', traceback: ['a', 'b\n'] })).toEqual({
      type: 'error',
      name: 'E',
      value: 'v',
      traceback: 'ab\n',
    });
  });

  it('fills in what is missing, as clients need all three', () => {
    expect(toErrorEvent({})).toEqual({ type: 'error', name: '', value: '', traceback: '' });
  });
});

describe('toOutputEvent', () => {
  it.each(['status', 'update_display_data', 'comm_open', 'debug_event', 'x_made_up'])(
    'has nothing to tell of %s',
    (type) => {
      const message = { header: { msg_type: type }, content: {} } as unknown as KernelMessage.IIOPubMessage;
      expect(toOutputEvent(message)).toBeUndefined();
    },
  );
});
