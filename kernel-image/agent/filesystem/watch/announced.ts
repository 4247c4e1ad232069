/**
 * The names that were told as created because a directory had them when it was listed, right after it was first
 * watched. Events from between watching and listing tell some of them again.
 */
export class Announced {
  /** Whether an event about the name was seen. */
  private readonly names: Map<string, boolean>;
  private readonly untilSeq: number;

  /** `untilSeq`: the last event that may be from before the listing. */
  constructor(entries: ReadonlyArray<{ name: string }>, untilSeq: number) {
    this.names = new Map(entries.map(({ name }) => [name, false]));
    this.untilSeq = untilSeq;
  }

  /**
   * What an event in the directory means for its name:
   * `told`: it came to be after the watch and before the listing, and the listing told so;
   * `existed`: it was there before the watch and gone before the listing, so nothing has told of it.
   */
  judge(name: string, appears: boolean, seq: number): 'told' | 'existed' | undefined {
    if (seq > this.untilSeq) return undefined;
    const seen = this.names.get(name);
    this.names.set(name, true);
    if (seen === false) return appears ? 'told' : undefined;
    if (seen === undefined) return appears ? undefined : 'existed';
    return undefined;
  }
}
