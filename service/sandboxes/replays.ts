import crypto from 'node:crypto';
import { ServiceError } from '../errors';
import type { CreateOptions, Sandbox } from './sandbox';
import type { Store } from './store';

/**
 * Creates that carry an `Idempotency-Key`: a repeated one gives the sandbox of the first, also while that one is
 * under way. The same key with other options is refused, and so is a key whose sandbox has ended.
 */
export class Replays {
  private readonly underWay = new Map<string, { fingerprint: string; result: Promise<Sandbox> }>();

  constructor(
    private readonly store: Pick<Store, 'findIdempotency' | 'addIdempotency'>,
    /** A live sandbox by its id. */
    private readonly find: (id: string) => Sandbox | undefined,
  ) {}

  /** `start` is called when there is nothing to repeat. */
  async run(
    teamId: string,
    key: string,
    options: CreateOptions,
    start: () => Promise<Sandbox>,
  ): Promise<Sandbox> {
    const slot = `${teamId}\0${key}`;
    const fingerprint = fingerprintOf(options);
    const underWay = this.underWay.get(slot);
    if (underWay !== undefined) {
      if (underWay.fingerprint !== fingerprint) throw keyReused();
      return underWay.result;
    }
    const result = this.replay(teamId, key, fingerprint, start);
    this.underWay.set(slot, { fingerprint, result });
    try {
      return await result;
    } finally {
      this.underWay.delete(slot);
    }
  }

  private async replay(
    teamId: string,
    key: string,
    fingerprint: string,
    start: () => Promise<Sandbox>,
  ): Promise<Sandbox> {
    const earlier = await this.store.findIdempotency(teamId, key);
    if (earlier === undefined) {
      const sandbox = await start();
      await this.store.addIdempotency(teamId, key, { sandboxId: sandbox.id, fingerprint });
      return sandbox;
    }
    if (earlier.fingerprint !== fingerprint) throw keyReused();
    const sandbox = this.find(earlier.sandboxId);
    if (sandbox === undefined) {
      throw new ServiceError(
        'failed_precondition',
        `The sandbox that this Idempotency-Key created has ended; use another key for a new one`,
      );
    }
    return sandbox;
  }
}

function fingerprintOf(options: CreateOptions): string {
  return crypto.createHash('sha256').update(JSON.stringify(options)).digest('hex');
}

function keyReused(): ServiceError {
  return new ServiceError(
    'failed_precondition',
    'This Idempotency-Key was already used for a create with other options',
  );
}
