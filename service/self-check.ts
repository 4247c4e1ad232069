import { z } from 'zod';
import { HEADERS, INTERPRETER_PORT } from '../protocol/routing';
import { ServiceError } from './errors';

/** A small analysis that needs everything to work: pandas, a chart, and its data. */
const ANALYSIS = `
import pandas as pd, matplotlib.pyplot as plt
frame = pd.DataFrame({'city': ['Oslo', 'Bergen'], 'sales': [24, 16]})
plt.bar(frame.city, frame.sales); plt.show()
frame
`;

const DEADLINE_MS = 90_000;

const Created = z.object({ sandboxID: z.string() });
const Line = z.looseObject({ type: z.string() });

/**
 * Does what a client would do, over HTTP: creates a sandbox, runs an analysis, draws a chart, and removes the sandbox.
 * Resolves to one line that says so; rejects with the reason.
 */
export async function selfCheck(url: string, apiKey: string): Promise<string> {
  const started = Date.now();
  const signal = AbortSignal.timeout(DEADLINE_MS);
  const headers = { 'content-type': 'application/json', [HEADERS.apiKey]: apiKey };
  const created = await fetch(`${url}/v2/sandboxes`, {
    method: 'POST',
    headers,
    body: JSON.stringify({
      templateID: 'code-interpreter-v1',
      timeout: 300,
      metadata: { purpose: 'self-check' },
    }),
    signal,
  });
  if (created.status !== 201)
    throw new ServiceError(
      'unavailable',
      `creating a sandbox answered ${created.status}: ${await created.text()}`,
    );
  const { sandboxID } = Created.parse(await created.json());
  try {
    const executed = await fetch(`${url}/execute`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        [HEADERS.sandboxId]: sandboxID,
        [HEADERS.sandboxPort]: String(INTERPRETER_PORT),
      },
      body: JSON.stringify({ code: ANALYSIS }),
      signal,
    });
    if (!executed.ok)
      throw new ServiceError(
        'unavailable',
        `running a cell answered ${executed.status}: ${await executed.text()}`,
      );
    const lines = (await executed.text())
      .trim()
      .split('\n')
      .map((line) => Line.parse(JSON.parse(line)));
    const error = lines.find((line) => line.type === 'error');
    if (error !== undefined)
      throw new ServiceError(
        'unavailable',
        `the cell failed: ${String(error['name'])}: ${String(error['value'])}`,
      );
    const results = lines.filter((line) => line.type === 'result');
    if (!results.some((result) => result['png']) || !results.some((result) => result['data'])) {
      throw new ServiceError('unavailable', 'the cell gave no chart or no table');
    }
  } finally {
    await fetch(`${url}/sandboxes/${sandboxID}`, {
      method: 'DELETE',
      headers,
      signal: AbortSignal.timeout(30_000),
    });
  }
  return `created a sandbox, ran a pandas analysis with a chart, removed the sandbox: ${((Date.now() - started) / 1000).toFixed(1)} s`;
}
