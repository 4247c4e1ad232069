import { Sandbox } from '@e2b/code-interpreter';
import { runThrough } from './sdk-subject';
import { startService } from './service';
import type { MeasuredService, ServiceOptions } from './service';
import type { Subject } from './subject';

/** The service, and one sandbox of it in which single executions are measured. */
export interface Cellbox extends Subject {
  readonly service: MeasuredService;
  readonly sandbox: Sandbox;
}

/** This service as a user starts it, used through the official SDK. */
export async function startCellbox(options: ServiceOptions): Promise<Cellbox> {
  const service = await startService(options);
  try {
    const { url, apiKey } = service;
    const sandbox = await Sandbox.create({ apiKey, apiUrl: url, sandboxUrl: url, timeoutMs: 3_600_000 });
    const name = 'Cellbox';
    return {
      name,
      description: `this service, ${options.runtime} runtime, official JavaScript SDK over HTTP`,
      ...runThrough(sandbox, name),
      service,
      sandbox,
      close: () => service.close(),
    };
  } catch (error) {
    await service.close();
    throw error;
  }
}
