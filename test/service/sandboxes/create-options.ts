import type { CreateOptions } from '../../../service/sandboxes/sandbox';

/** What a create asks for when it asks for nothing in particular. */
export function createOptions(overrides: Partial<CreateOptions> = {}): CreateOptions {
  return {
    template: 'base',
    timeoutSeconds: 300,
    metadata: {},
    env: {},
    secure: true,
    allowPublicTraffic: true,
    allowInternetAccess: true,
    allowOut: [],
    denyOut: [],
    autoPause: false,
    autoPauseMode: 'full',
    autoResume: false,
    ...overrides,
  };
}
