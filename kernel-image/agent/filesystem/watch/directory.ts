import type { Announced } from './announced';

/** A directory that is watched, or about to be. */
export interface Directory {
  name: string;
  parent: Directory | undefined;
  /** `undefined` until it is watched, and again when it is gone. */
  wd: number | undefined;
  children: Map<string, Directory>;
  /** Set from the moment it left its place in a rename until the rename's second event. */
  cookie: number;
  announced: Announced | undefined;
}

export function newDirectory(name: string, parent: Directory | undefined): Directory {
  return { name, parent, wd: undefined, children: new Map(), cookie: 0, announced: undefined };
}

export function childOf(parent: Directory, name: string): Directory {
  const child = newDirectory(name, parent);
  parent.children.set(name, child);
  return child;
}

/** Path below the root; where a rename is half told, the old one. */
export function nameOf(directory: Directory): string {
  let name = '';
  for (let one = directory; one.parent !== undefined; one = one.parent) {
    name = name === '' ? one.name : `${one.name}/${name}`;
  }
  return name === '' ? '.' : name;
}

export function isAncestor(above: Directory, below: Directory): boolean {
  for (let one = below.parent; one !== undefined; one = one.parent) if (one === above) return true;
  return false;
}

/** Whether it is still in its parent, and that in its own, up to the root. */
export function isAttached(directory: Directory, root: Directory): boolean {
  let one = directory;
  for (; one.parent !== undefined; one = one.parent) {
    if (one.parent.children.get(one.name) !== one) return false;
  }
  return one === root;
}
