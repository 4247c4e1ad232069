/** Operations on one machine run one after another, in the order in which they were asked for; machines do not wait for each other. */
export class Operations {
  /** The last one of each machine that has any. */
  private readonly last = new Map<string, Promise<void>>();

  /** Runs `work` after the operations on this machine that were asked for earlier, whether or not they failed. */
  run<T>(id: string, work: () => Promise<T>): Promise<T> {
    const operation = (this.last.get(id) ?? Promise.resolve()).then(work);
    const settled = operation.then(
      () => undefined,
      () => undefined, // the caller hears of a failure, the next in line needn't
    );
    this.last.set(id, settled);
    void settled.then(() => {
      if (this.last.get(id) === settled) this.last.delete(id);
    });
    return operation;
  }

  /** Resolves when those that are under way now have ended. */
  async settled(): Promise<void> {
    await Promise.all(this.last.values());
  }
}
