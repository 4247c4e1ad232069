import fc from 'fast-check';
import { toLogRecords } from '../../../service/sandboxes/machine-output';

const START = Date.parse('2026-11-21T10:00:00.000Z');
const END = START + 60_000;
const at = (seconds: number) => START + seconds * 1000;
const iso = (seconds: number) => new Date(at(seconds)).toISOString();

describe('the output of a machine', () => {
  it('tells who said what, how bad it is, and when', () => {
    const local = new Date(at(4));
    const two = (value: number) => String(value).padStart(2, '0');
    const day = `${local.getFullYear()}-${two(local.getMonth() + 1)}-${two(local.getDate())}`;
    const clock = `${two(local.getHours())}:${two(local.getMinutes())}:${two(local.getSeconds())}.250`;
    const lines = [
      { text: 'cellbox gateway listening on 127.0.0.1:8888' },
      { text: `cellbox ${iso(2)} supervisor: agent ended (SIGKILL), starting it again` },
      { text: 'Traceback (most recent call last):' },
      { text: `cellbox ${iso(3)} agent: it went wrong` },
      { text: `[W ${day} ${clock} KernelGatewayApp] A kernel died` },
      { text: `[E ${day} ${clock} KernelGatewayApp] Worse\r` },
      { text: '' },
      { at: at(5), text: 'by the clock of the engine' },
    ];
    expect(toLogRecords(lines, START, END)).toEqual([
      { at: START, level: 'info', message: 'listening on 127.0.0.1:8888', fields: { logger: 'gateway' } },
      {
        at: at(2),
        level: 'warn',
        message: 'agent ended (SIGKILL), starting it again',
        fields: { logger: 'supervisor' },
      },
      {
        at: at(2),
        level: 'info',
        message: 'Traceback (most recent call last):',
        fields: { logger: 'sandbox' },
      },
      { at: at(3), level: 'warn', message: 'it went wrong', fields: { logger: 'agent' } },
      { at: at(4) + 250, level: 'warn', message: 'A kernel died', fields: { logger: 'gateway' } },
      { at: at(4) + 250, level: 'error', message: 'Worse', fields: { logger: 'gateway' } },
      { at: at(5), level: 'info', message: 'by the clock of the engine', fields: { logger: 'sandbox' } },
    ]);
  });

  it('believes no time from before the start or from the future', () => {
    const lines = [
      { text: `cellbox ${iso(1)} agent: true` },
      { text: 'cellbox 9999-01-01T00:00:00.000Z agent: forged' },
      { text: `cellbox ${iso(-1)} agent: forged` },
      { text: 'cellbox 2026-99-99T00:00:00.000Z agent: no time' },
      { at: END + 1, text: 'late' },
    ];
    expect(toLogRecords(lines, START, END).map((record) => record.at)).toEqual(Array(5).fill(at(1)));
  });

  it('has no control characters, nor messages without end', () => {
    const [record] = toLogRecords([{ text: `\x1b[2J\x9bm${'x'.repeat(10_000)}` }], START, END);
    expect(record?.message === `[2Jm${'x'.repeat(4_092)}…`).toBe(true); // a difference would print it all
    fc.assert(
      fc.property(fc.array(fc.string({ unit: 'binary' })), (texts) => {
        for (const each of toLogRecords(
          texts.map((text) => ({ text })),
          START,
          END,
        )) {
          expect(each.message).not.toMatch(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/);
          expect(each.at).toBe(START);
        }
      }),
    );
  });
});
