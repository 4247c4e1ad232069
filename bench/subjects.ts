import type { Subject } from './subject';

/** The systems that are compared in one run, the first one ours. Owns them: `close` ends the last one first. */
export class Subjects {
  readonly list: Subject[] = [];

  async start<Started extends Subject>(what: string, start: () => Promise<Started>): Promise<Started> {
    console.error(`starting ${what}`);
    const subject = await start();
    this.list.push(subject);
    return subject;
  }

  find(name: string): Subject {
    const subject = this.list.find((each) => each.name === name);
    if (subject === undefined) throw new Error(`${name} was not started`);
    return subject;
  }

  async close(): Promise<void> {
    // The names stay for the report.
    for (const subject of [...this.list].reverse()) {
      await subject.close().catch((error: unknown) => {
        console.error(`ending ${subject.name}: ${String(error)}`);
        process.exitCode = 1;
      });
    }
  }
}
