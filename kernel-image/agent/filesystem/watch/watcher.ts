import { create } from '@bufbuild/protobuf';
import path from 'node:path';
import { EventType, FilesystemEventSchema } from '../../../../protocol/envd/gen/filesystem_pb';
import type { EntryInfo, FilesystemEvent } from '../../../../protocol/envd/gen/filesystem_pb';
import { childPath } from '../disk-path';
import type { DiskPath } from '../../xattr';
import type { Hub } from './hub';
import { Tree } from './tree';
import { unreadError } from './watch-failure';

/** Names of events are at most as long as paths; this many characters wait in one watcher at most. */
const MAX_WAITING_CHARACTERS = 16 * 1024 * 1024;

export interface WatchOptions {
  /** As the caller spells it. */
  apiPath: string;
  diskPath: string;
  recursive: boolean;
  /** Tells about the file of an event, throws when there is none; absent when the caller didn't ask. */
  describe: ((apiPath: string, diskPath: DiskPath) => EntryInfo) | undefined;
  /** Events that may wait. One more, and the watcher fails instead of dropping any silently. */
  maxEvents: number;
}

/** Files of these events still exist, usually. */
const WITH_ENTRY = new Set([EventType.CREATE, EventType.WRITE, EventType.CHMOD]);

/** The events of one directory as callers see them, waiting to be fetched. The owner closes it. */
export class Watcher {
  private readonly options: WatchOptions;
  private readonly tree: Tree;
  private events: FilesystemEvent[] = [];
  private first = 0;
  private characters = 0;
  private failure: Error | undefined;
  private closed = false;
  private arrived = () => {};

  constructor(hub: Hub, options: WatchOptions) {
    this.options = options;
    this.tree = new Tree(hub, Buffer.from(options.diskPath).toString('latin1'), options.recursive, {
      changed: (name, type) => this.add(name, type),
      failed: (error) => this.fail(error),
    });
  }

  /** Resolves when every change from now on will be told. Rejects when that can't be; close it then, too. */
  async start(signal: AbortSignal): Promise<void> {
    await this.tree.start(signal);
  }

  /** The next event; `undefined` once closed. A failure comes after the events before it. One caller at a time. */
  async next(): Promise<FilesystemEvent | undefined> {
    for (;;) {
      const event = this.events[this.first];
      if (event !== undefined) {
        this.first += 1;
        this.characters -= charactersOf(event);
        // Now and then, so that fetching one by one takes linear time.
        if (this.first > 1024 && this.first * 2 > this.events.length) {
          this.events = this.events.slice(this.first);
          this.first = 0;
        }
        return event;
      }
      if (this.failure !== undefined) throw this.failure;
      if (this.closed) return undefined;
      await new Promise<void>((resolve) => (this.arrived = resolve));
    }
  }

  /** Every event until now. After a failure only that: whoever got some of the events would not know that others are lost. */
  async takeAll(): Promise<FilesystemEvent[]> {
    await this.tree.settle();
    if (this.failure !== undefined) throw this.failure;
    const events = this.events.slice(this.first);
    this.clear();
    return events;
  }

  close(): void {
    this.closed = true;
    this.tree.close();
    this.clear();
    this.arrived();
  }

  private add(bytes: string, type: EventType): void {
    if (this.failure !== undefined) return;
    const raw = Buffer.from(bytes, 'latin1');
    const name = raw.toString();
    const event = create(FilesystemEventSchema, { name, type, entry: this.entry(name, raw, type) });
    this.characters += charactersOf(event);
    const waiting = this.events.length - this.first;
    if (waiting >= this.options.maxEvents || this.characters > MAX_WAITING_CHARACTERS) {
      this.tree.close();
      this.fail(unreadError(waiting));
      return;
    }
    this.events.push(event);
    this.arrived();
  }

  private entry(name: string, raw: Buffer, type: EventType): EntryInfo | undefined {
    const { describe, apiPath, diskPath } = this.options;
    if (describe === undefined || !WITH_ENTRY.has(type)) return undefined;
    try {
      return describe(path.posix.join(apiPath, name), name === '.' ? diskPath : childPath(diskPath, raw));
    } catch {
      return undefined; // gone meanwhile, or nothing can be told: the event counts all the same
    }
  }

  private fail(error: Error): void {
    this.failure ??= error;
    this.arrived();
  }

  private clear(): void {
    this.events = [];
    this.first = 0;
    this.characters = 0;
  }
}

/** Rough, and with what an object takes. */
function charactersOf(event: FilesystemEvent): number {
  return event.name.length + (event.entry === undefined ? 50 : event.entry.path.length + 500);
}
