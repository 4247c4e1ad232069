/** Port of the agent inside every sandbox (E2B's envd). */
export const AGENT_PORT = 49983;
/** Port of the code interpreter; answered by the service, never inside the sandbox. */
export const INTERPRETER_PORT = 49999;
/** Port of the kernel gateway inside. The edge refuses it: reaching it would be code execution without our checks. */
export const GATEWAY_PORT = 8888;

/** Header names, lower-case as Node delivers them. */
export const HEADERS = {
  sandboxId: 'e2b-sandbox-id',
  sandboxPort: 'e2b-sandbox-port',
  accessToken: 'x-access-token',
  trafficToken: 'e2b-traffic-access-token',
  apiKey: 'x-api-key',
} as const;
