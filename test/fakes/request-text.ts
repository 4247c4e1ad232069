import type http from 'node:http';
import { text } from 'node:stream/consumers';

/** The body of a request; nothing when its client has gone meanwhile, as one may whose test is over. */
export async function requestText(req: http.IncomingMessage): Promise<string | undefined> {
  try {
    return await text(req);
  } catch (error) {
    if (req.destroyed) return undefined;
    throw error;
  }
}
