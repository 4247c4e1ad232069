import { Sandbox } from '@e2b/code-interpreter';
import { runThrough } from './sdk-subject';
import type { Subject } from './subject';

/**
 * Any server of the code interpreter's NDJSON API at an address of the user's, through the same SDK. What runs there is
 * not ours: `close` ends nothing.
 *
 * @throws when the address is none, or nothing there runs code.
 */
export async function connectRival(address: string): Promise<Subject> {
  if (!/^https?:\/\//.test(address) || !URL.canParse(address))
    throw new Error(`--rival ${address}: must be an address as http://host:49999`);
  const url = new URL(address);
  const name = 'rival';
  // An id is needed by edges in front of a server, and by nobody else; its place in an address is that of a user name.
  const sandbox = new Sandbox({
    sandboxId: url.username || 'rival',
    sandboxUrl: url.origin,
    apiKey: 'e2b_00',
    envdVersion: '0.4.0',
  });
  const subject = runThrough(sandbox, name);
  await subject.run('1');
  return {
    name,
    description: `the server of the same NDJSON API at ${url.host}, official JavaScript SDK over HTTP`,
    ...subject,
    close: () => Promise.resolve(),
  };
}
