import { IN, Inotify } from './inotify';
import type { RawEvent } from './inotify';

/** What the hub needs from whoever watches. */
export interface HubMember {
  /** Must only take note: the hub may be in the middle of a call of this very member. */
  push(event: RawEvent): void;
  /** The instance broke; no event will come any more. */
  broke(error: Error): void;
}

/**
 * One inotify instance for all watchers, there while there is one. The kernel allows few instances per user (128), and
 * the sandboxes of a machine share them; it gives a directory one number, however many watch it.
 */
export class Hub {
  private readonly members = new Set<HubMember>();
  private readonly watching = new Map<number, Set<HubMember>>();
  private inotify: Inotify | undefined;

  /** Throws where there is no inotify, or no instance left. */
  join(member: HubMember): void {
    this.inotify ??= new Inotify(
      (events) => this.spread(events),
      (error) => this.break(error),
    );
    this.members.add(member);
  }

  /** `wds`: all that the member watches. The last one to leave closes the instance, which is quicker than one by one. */
  leave(member: HubMember, wds: Iterable<number>): void {
    if (!this.members.delete(member)) return;
    if (this.members.size > 0) {
      for (const wd of wds) this.remove(member, wd);
      return;
    }
    this.inotify?.close();
    this.inotify = undefined;
    this.watching.clear();
  }

  /** Watches the directory for this member, which joined. `path` in latin1. */
  add(member: HubMember, path: string, flags: number): number {
    const wd = this.open().add(path, flags);
    const members = this.watching.get(wd);
    if (members === undefined) this.watching.set(wd, new Set([member]));
    else members.add(member);
    return wd;
  }

  remove(member: HubMember, wd: number): void {
    const members = this.watching.get(wd);
    if (!members?.delete(member) || members.size > 0) return;
    this.watching.delete(wd);
    this.inotify?.remove(wd);
  }

  /** Fetches what is queued, and tells the `seq` of the last event of it. */
  read(): number {
    const inotify = this.open();
    inotify.read();
    return inotify.seq;
  }

  private open(): Inotify {
    if (this.inotify === undefined) throw new Error('watching broke off');
    return this.inotify;
  }

  private spread(events: RawEvent[]): void {
    for (const event of events) {
      const members = event.wd === -1 ? this.members : this.watching.get(event.wd);
      if (members === undefined) continue;
      for (const member of members) member.push(event);
      if ((event.mask & IN.IGNORED) !== 0) this.watching.delete(event.wd);
    }
  }

  private break(error: Error): void {
    this.inotify?.close();
    this.inotify = undefined;
    const members = [...this.members];
    this.members.clear();
    this.watching.clear();
    for (const member of members) member.broke(error);
  }
}
