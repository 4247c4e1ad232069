import type { KernelMessage } from '@jupyterlab/services/lib/kernel';
import type { OutputEvent } from '../../protocol/interpreter';
import { displayIdOf } from './kernel-socket';
import { toResultFields } from './mime';

type ErrorEvent = Extract<OutputEvent, { type: 'error' }>;

const ISO_INSTANT = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:?\d\d)?$/;

/**
 * A message's date as the wire spells it: UTC with microseconds and `+00:00`. Kernels write Z or an offset and any
 * number of digits; what can't be read as an instant becomes `now`.
 */
export function toTimestamp(date: unknown, now: () => Date = () => new Date()): string {
  const match = typeof date === 'string' ? ISO_INSTANT.exec(date) : null;
  const [, seconds = '', fraction = '', zone = 'Z'] = match ?? [];
  if (match !== null && /^(Z|[+-]00:?00)$/.test(zone)) {
    return `${seconds}.${fraction.slice(0, 6).padEnd(6, '0')}+00:00`;
  }
  const instant = match === null ? now() : new Date(`${seconds}${zone.replace(/(\d\d):?(\d\d)$/, '$1:$2')}`);
  if (Number.isNaN(instant.getTime())) return toTimestamp(undefined, now);
  const [whole = '', millis = ''] = instant.toISOString().slice(0, -1).split('.');
  const digits = match === null ? millis : fraction;
  return `${whole}.${digits.slice(0, 6).padEnd(6, '0')}+00:00`;
}

/** An error as a kernel tells it, on IOPub or in a reply. Missing parts become empty, as clients index all three. */
export function toErrorEvent(content: {
  ename?: unknown;
  evalue?: unknown;
  traceback?: unknown;
}): ErrorEvent {
  const { ename, evalue, traceback } = content;
  return {
    type: 'error',
    name: typeof ename === 'string' ? ename : '',
    value: typeof evalue === 'string' ? evalue : '',
    traceback: Array.isArray(traceback) ? traceback.join('') : typeof traceback === 'string' ? traceback : '',
  };
}

/**
 * Translates one IOPub message into what the client sees, or `undefined` when it carries nothing for the client
 * (status, widgets, kernel extensions).
 *
 * Pure and total: kernels may publish message types this service has never heard of.
 */
export function toOutputEvent(message: KernelMessage.IIOPubMessage): OutputEvent | undefined {
  // Contents were checked by type when the message arrived; an unknown type has unknown contents.
  const content = message.content as Record<string, unknown>;
  switch (message.header.msg_type as string) {
    case 'stream':
      return {
        type: content['name'] === 'stderr' ? 'stderr' : 'stdout',
        text: content['text'] as string,
        timestamp: toTimestamp(message.header.date),
      };
    case 'execute_result':
      return { type: 'result', ...fieldsOf(content), is_main_result: true };
    case 'display_data': {
      const id = displayIdOf(content);
      if (id !== undefined) return { type: 'display', display_id: id, ...fieldsOf(content) };
      return { type: 'result', ...fieldsOf(content), is_main_result: false };
    }
    case 'update_display_data': {
      const id = displayIdOf(content);
      return id === undefined ? undefined : { type: 'update_display', display_id: id, ...fieldsOf(content) };
    }
    case 'clear_output':
      return { type: 'clear_output', wait: content['wait'] === true };
    case 'execute_input':
      return { type: 'number_of_executions', execution_count: content['execution_count'] as number };
    case 'error':
      return toErrorEvent(content);
    default:
      return undefined;
  }
}

function fieldsOf(content: Record<string, unknown>): ReturnType<typeof toResultFields> {
  const { data } = content;
  return toResultFields(typeof data === 'object' && data !== null ? (data as Record<string, unknown>) : {});
}
