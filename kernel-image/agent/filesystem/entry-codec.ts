import { create } from '@bufbuild/protobuf';
import { TimestampSchema } from '@bufbuild/protobuf/wkt';
import type { Timestamp } from '@bufbuild/protobuf/wkt';
import { EntryInfoSchema, FileType, FileTypeSchema } from '../../../protocol/envd/gen/filesystem_pb';
import type { EntryInfo } from '../../../protocol/envd/gen/filesystem_pb';
import type { FileEntry } from './entry';

/** 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z: what the protocol can tell. Files may have any time. */
const MIN_SECONDS = -62_135_596_800;
const MAX_SECONDS = 253_402_300_799;

export function entryMessage(entry: FileEntry): EntryInfo {
  const message = create(EntryInfoSchema);
  message.name = entry.name;
  message.type = entry.type;
  message.path = entry.path;
  message.size = BigInt(entry.size);
  message.mode = entry.mode;
  message.permissions = entry.permissions;
  message.owner = entry.owner;
  message.group = entry.group;
  message.modifiedTime = timestamp(entry);
  if (entry.symlinkTarget !== undefined) message.symlinkTarget = entry.symlinkTarget;
  message.metadata = entry.metadata;
  return message;
}

/**
 * The message in JSON, as its own conversion gives it but for the order of fields. That asks the schema about every field
 * of every entry: 5 ms for a thousand of them, and 1.5 ms where it makes objects for `JSON.stringify`. Texts put together
 * take 0.6 ms.
 */
export function entryText(entry: FileEntry): string {
  let text = commonText(entry);
  if (entry.name !== '') text += `,"name":${quoted(entry.name)}`;
  if (entry.path !== '') text += `,"path":${quoted(entry.path)}`;
  if (entry.size !== 0) text += `,"size":"${entry.size}"`;
  if (hasTime(entry)) text += `,"modifiedTime":"${timeText(entry)}"`;
  if (entry.symlinkTarget !== undefined) text += `,"symlinkTarget":${quoted(entry.symlinkTarget)}`;
  for (const _ in entry.metadata) return `${text},"metadata":${JSON.stringify(entry.metadata)}}`;
  return `${text}}`;
}

type Common = Pick<FileEntry, 'type' | 'mode' | 'permissions' | 'owner' | 'group'>;

let lastCommon: Common = { type: FileType.UNSPECIFIED, mode: 0, permissions: '', owner: '', group: '' };
let lastCommonText = '{"permissions":""';

/** The beginning of an entry's JSON, with what most files of a directory have in common. */
function commonText({ type, mode, permissions, owner, group }: Common): string {
  const last = lastCommon;
  const isLast =
    mode === last.mode &&
    type === last.type &&
    permissions === last.permissions &&
    owner === last.owner &&
    group === last.group;
  if (!isLast) {
    lastCommon = { type, mode, permissions, owner, group };
    // What is undefined is left out.
    const fields = {
      permissions,
      type: type === FileType.UNSPECIFIED ? undefined : typeName(type),
      mode: mode || undefined,
      owner: owner || undefined,
      group: group || undefined,
    };
    lastCommonText = JSON.stringify(fields).slice(0, -1);
  }
  return lastCommonText;
}

/** Needs nothing escaped in JSON. */
const PLAIN = /^[\x20\x21\x23-\x5b\x5d-\x7e]*$/;

function quoted(text: string): string {
  return PLAIN.test(text) ? `"${text}"` : JSON.stringify(text);
}

function typeName(type: FileType): string {
  return FileTypeSchema.value[type]?.name ?? '';
}

/** Files without a time have the epoch itself: no time is told. */
function hasTime(entry: FileEntry): boolean {
  return entry.modifiedSeconds !== 0 || entry.modifiedNanos !== 0;
}

function tellableSeconds(entry: FileEntry): number {
  return Math.min(Math.max(entry.modifiedSeconds, MIN_SECONDS), MAX_SECONDS);
}

function timestamp(entry: FileEntry): Timestamp | undefined {
  if (!hasTime(entry)) return undefined;
  const time = create(TimestampSchema);
  time.seconds = BigInt(tellableSeconds(entry));
  time.nanos = entry.modifiedNanos;
  return time;
}

/** With no decimals, or three, six or nine of them, as JSON of the protocol has it. */
function timeText(entry: FileEntry): string {
  const whole = wholeSeconds(tellableSeconds(entry));
  if (entry.modifiedNanos === 0) return `${whole}Z`;
  let decimals = String(entry.modifiedNanos).padStart(9, '0');
  while (decimals.endsWith('000')) decimals = decimals.slice(0, -3);
  return `${whole}.${decimals}Z`;
}

let lastSeconds = NaN;
let lastText = '';

/** Date and time without decimals. Files of one directory are often of one second. */
function wholeSeconds(seconds: number): string {
  if (seconds !== lastSeconds) {
    lastSeconds = seconds;
    lastText = new Date(seconds * 1000).toISOString().slice(0, -5);
  }
  return lastText;
}
