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
 * The message in JSON, as its own conversion gives it, which asks the schema about every field of every entry: 5 ms for a
 * thousand of them, and 1.5 ms where that makes objects for `JSON.stringify`. Texts put together take 0.6 ms.
 */
export function entryText(entry: FileEntry): string {
  let text = `{"permissions":${quoted(entry.permissions)}`;
  if (entry.name !== '') text += `,"name":${quoted(entry.name)}`;
  if (entry.type !== FileType.UNSPECIFIED) text += `,"type":"${typeName(entry.type)}"`;
  if (entry.path !== '') text += `,"path":${quoted(entry.path)}`;
  if (entry.size !== 0) text += `,"size":"${entry.size}"`;
  if (entry.mode !== 0) text += `,"mode":${entry.mode}`;
  if (entry.owner !== '') text += `,"owner":${quoted(entry.owner)}`;
  if (entry.group !== '') text += `,"group":${quoted(entry.group)}`;
  if (hasTime(entry)) text += `,"modifiedTime":"${timeText(entry)}"`;
  if (entry.symlinkTarget !== undefined) text += `,"symlinkTarget":${quoted(entry.symlinkTarget)}`;
  for (const _ in entry.metadata) return `${text},"metadata":${JSON.stringify(entry.metadata)}}`;
  return `${text}}`;
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
