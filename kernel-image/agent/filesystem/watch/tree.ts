import { setImmediate as turn } from 'node:timers/promises';
import { EventType } from '../../../../protocol/envd/gen/filesystem_pb';
import type { Hub, HubMember } from './hub';
import { IN } from './inotify';
import type { RawEvent } from './inotify';
import { Announced } from './announced';
import { childOf, isAncestor, isAttached, nameOf, newDirectory } from './directory';
import type { Directory } from './directory';
import { listDirectory } from './list-directory';
import { overflowError, unwatchable, watchFailure } from './watch-failure';

/** Work between two turns of the event loop. */
const SLICE_MS = 8;
/** Events read and not yet looked at; ten times the kernel's own limit. */
const MAX_BACKLOG = 163_840;

/** What becomes of a tree's events. */
export interface TreeListener {
  /** `name` is relative to the root, in latin1; `.` for the root itself. */
  changed(name: string, type: EventType): void;
  /** Nothing more will come. */
  failed(error: Error): void;
}

/** One kernel event may carry several flags; they are told in this order. */
const TYPES: ReadonlyArray<readonly [number, EventType]> = [
  [IN.CREATE | IN.MOVED_TO, EventType.CREATE],
  [IN.MOVED_FROM | IN.MOVE_SELF, EventType.RENAME],
  [IN.ATTRIB, EventType.CHMOD],
  [IN.MODIFY, EventType.WRITE],
  [IN.DELETE | IN.DELETE_SELF, EventType.REMOVE],
];

const APPEARS = IN.CREATE | IN.MOVED_TO;

/**
 * The changes in one directory, or in it and everything below.
 *
 * Events are a log of the past, while directories are found by their present paths; a directory may have been renamed
 * since, or another one have its name. So whatever an event says is checked against the number that the kernel gives
 * the directory at that path now, and what doesn't agree is watched anew. When all events are read, every directory
 * that exists is watched under its right name.
 *
 * A new directory may have content before it is watched. It is listed right after, and each name in it told as
 * created, once (see `Announced`). That holds for directories that are moved in, too, but not for those that move
 * within the tree: what they hold was told before.
 *
 * Names are bytes, one per character (latin1): they need not be UTF-8.
 */
export class Tree implements HubMember {
  private readonly hub: Hub;
  private readonly root: Directory;
  private readonly recursive: boolean;
  private readonly listener: TreeListener;
  private readonly byWd = new Map<number, Directory>();
  /** By the rename's cookie. */
  private readonly moving = new Map<number, Directory>();
  /** To be watched, last first. */
  private pending: Directory[] = [];
  private backlog: RawEvent[] = [];
  private next = 0;
  private announcing: Directory[] = [];
  /** Until `start` is done, events only keep the tree right. */
  private started = false;
  private doneSeq = 0;
  private wakeup: NodeJS.Immediate | undefined;
  private failure: Error | undefined;
  private closed = false;

  /** `path` on disk, in latin1. */
  constructor(hub: Hub, path: string, recursive: boolean, listener: TreeListener) {
    this.hub = hub;
    this.recursive = recursive;
    this.listener = listener;
    this.root = newDirectory(path, undefined);
  }

  /** Resolves when everything is watched. Changes before are not told. */
  async start(signal: AbortSignal): Promise<void> {
    try {
      this.hub.join(this);
      // Other watchers may have the same directory: what is queued for them is from before.
      this.hub.read();
      this.watchRoot();
    } catch (error) {
      throw watchFailure(error);
    }
    for (;;) {
      this.work();
      if (this.failure !== undefined) throw this.failure;
      if (this.pending.length === 0) break;
      await turn();
      signal.throwIfAborted();
    }
    this.started = true;
  }

  /** Resolves when everything that happened before this call was told. */
  async settle(): Promise<void> {
    if (this.closed) return;
    const target = this.hub.read();
    for (;;) {
      this.work();
      if (this.closed || this.idle() || this.doneSeq >= target) return;
      await turn();
    }
  }

  push(event: RawEvent): void {
    if (this.closed) return;
    const full = this.backlog.length - this.next >= MAX_BACKLOG;
    this.backlog.push(full ? { ...event, wd: -1, mask: IN.Q_OVERFLOW, name: '' } : event);
    this.wakeup ??= setImmediate(() => this.work());
  }

  broke(error: Error): void {
    this.fail(watchFailure(error));
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    clearImmediate(this.wakeup);
    this.hub.leave(this, this.byWd.keys());
    this.byWd.clear();
    this.moving.clear();
    this.pending = [];
    this.backlog = [];
    this.next = 0;
  }

  private idle(): boolean {
    return this.pending.length === 0 && this.next >= this.backlog.length;
  }

  private work(): void {
    clearImmediate(this.wakeup);
    this.wakeup = undefined;
    const until = performance.now() + SLICE_MS;
    try {
      while (!this.closed && !this.idle()) {
        if (performance.now() > until) {
          this.wakeup = setImmediate(() => this.work());
          return;
        }
        const directory = this.pending.pop();
        if (directory !== undefined) this.open(directory);
        else this.process(this.nextEvent());
      }
    } catch (error) {
      this.fail(watchFailure(error));
    }
    // Everything that was read while directories were listed has been seen.
    for (const directory of this.announcing) directory.announced = undefined;
    this.announcing = [];
  }

  private nextEvent(): RawEvent {
    const event = this.backlog[this.next++] as RawEvent; // idle() said that there is one
    this.doneSeq = event.seq - 1;
    if (this.next >= this.backlog.length) {
      this.backlog = [];
      this.next = 0;
    }
    return event;
  }

  private process(event: RawEvent): void {
    if ((event.mask & IN.Q_OVERFLOW) !== 0) {
      this.fail(overflowError());
      return;
    }
    const directory = this.byWd.get(event.wd);
    if (directory === undefined) return;
    if ((event.mask & IN.IGNORED) !== 0) {
      this.byWd.delete(event.wd);
      directory.wd = undefined;
    } else if (event.name === '') {
      this.processOwn(directory, event.mask);
    } else {
      this.tellAll(directory, event);
      if (this.recursive && (event.mask & IN.ISDIR) !== 0) this.processChild(directory, event);
    }
  }

  /** About a watched directory itself. Its parent's events tell the same of deletions and moves, if it is watched. */
  private processOwn(directory: Directory, mask: number): void {
    const isRoot = directory === this.root;
    for (const [bits, type] of TYPES) {
      // What the reference does: changed permissions of a subdirectory are told twice.
      if ((mask & bits) !== 0 && (isRoot || type === EventType.CHMOD)) this.tell(nameOf(directory), type);
    }
    if ((mask & IN.MOVE_SELF) !== 0) {
      // The kernel tells this after both events of the rename: what still waits for the second one has left the tree.
      if (directory.cookie !== 0 || isRoot) this.forget(directory);
    }
    if (isRoot && (mask & IN.UNMOUNT) !== 0)
      this.fail(watchFailure(new Error('the file system was unmounted')));
  }

  private tellAll(directory: Directory, event: RawEvent): void {
    const name = directory === this.root ? event.name : `${nameOf(directory)}/${event.name}`;
    const appears = (event.mask & APPEARS) !== 0;
    const known = directory.announced?.judge(event.name, appears, event.seq);
    if (known === 'existed') this.tell(name, EventType.CREATE);
    for (const [bits, type] of TYPES) {
      if ((event.mask & bits) === 0 || (type === EventType.CREATE && known === 'told')) continue;
      this.tell(name, type);
    }
  }

  /** Keeps the tree right after an event about a subdirectory. */
  private processChild(parent: Directory, event: RawEvent): void {
    const existing = parent.children.get(event.name);
    if ((event.mask & IN.MOVED_FROM) !== 0 && existing !== undefined) {
      parent.children.delete(event.name);
      existing.cookie = event.cookie;
      this.moving.set(event.cookie, existing);
    } else if ((event.mask & IN.DELETE) !== 0 && existing !== undefined) {
      this.forget(existing);
    } else if ((event.mask & APPEARS) !== 0) {
      const moved = event.cookie === 0 ? undefined : this.moving.get(event.cookie);
      if (moved === undefined) {
        this.pending.push(existing ?? childOf(parent, event.name));
        return;
      }
      if (existing !== undefined) this.forget(existing);
      this.moving.delete(event.cookie);
      moved.cookie = 0;
      moved.name = event.name;
      moved.parent = parent;
      parent.children.set(moved.name, moved);
      this.pending.push(moved);
    } else if ((event.mask & IN.ATTRIB) !== 0 && existing === undefined) {
      this.pending.push(childOf(parent, event.name)); // it may have become readable
    }
  }

  private watchRoot(): void {
    this.root.wd = this.hub.add(this, this.root.name, 0);
    this.byWd.set(this.root.wd, this.root);
    if (this.recursive) this.list(this.root);
  }

  /** Watches the directory that is at that path now, unless it is the one that is watched already. */
  private open(directory: Directory): void {
    if (this.root.wd === undefined || !isAttached(directory, this.root)) return;
    let wd = this.watch(directory);
    if (wd !== undefined && wd === directory.wd) return;
    const elsewhere = wd === undefined ? undefined : this.byWd.get(wd);
    if (elsewhere !== undefined) {
      // A mount of one of its own ancestors has no end.
      if (isAncestor(elsewhere, directory)) {
        this.forget(directory);
        return;
      }
      this.forget(elsewhere);
      wd = this.watch(directory);
    }
    if (wd === undefined) {
      // Renamed or deleted since; if it was watched, the event that says which is still to come.
      if (directory.wd === undefined) this.forget(directory);
      return;
    }
    this.unwatch(directory);
    directory.wd = wd;
    this.byWd.set(wd, directory);
    this.list(directory);
  }

  /** Gives nothing for what can't be watched because it is gone, is no directory or may not be read. */
  private watch(directory: Directory): number | undefined {
    try {
      return this.hub.add(this, this.placeOf(directory), IN.DONT_FOLLOW);
    } catch (error) {
      if (unwatchable(error)) return undefined;
      throw error;
    }
  }

  private list(directory: Directory): void {
    const entries = listDirectory(this.placeOf(directory));
    for (const { name, isDirectory } of entries.toReversed()) {
      if (isDirectory) this.pending.push(directory.children.get(name) ?? childOf(directory, name));
    }
    if (!this.started) return;
    directory.announced = new Announced(entries, this.hub.read());
    this.announcing.push(directory);
    for (const { name } of entries) this.tell(`${nameOf(directory)}/${name}`, EventType.CREATE);
  }

  private tell(name: string, type: EventType): void {
    if (this.started && !this.closed) this.listener.changed(name, type);
  }

  /** Takes a directory and everything below out of the tree. */
  private forget(directory: Directory): void {
    this.unwatch(directory);
    if (directory.cookie !== 0) this.moving.delete(directory.cookie);
    else if (directory.parent?.children.get(directory.name) === directory) {
      directory.parent.children.delete(directory.name);
    }
  }

  private unwatch(directory: Directory): void {
    const all = [directory];
    for (let one = all.pop(); one !== undefined; one = all.pop()) {
      if (one.wd !== undefined) {
        this.byWd.delete(one.wd);
        this.hub.remove(this, one.wd);
        one.wd = undefined;
      }
      for (const child of one.children.values()) all.push(child);
      one.children.clear();
    }
  }

  private placeOf(directory: Directory): string {
    if (directory === this.root) return directory.name;
    return `${this.root.name.replace(/\/+$/, '')}/${nameOf(directory)}`;
  }

  private fail(error: Error): void {
    if (this.closed) return;
    this.failure = error;
    this.close();
    this.listener.failed(error);
  }
}
