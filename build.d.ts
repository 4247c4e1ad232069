/** Bundles the service and the agent into `dist/`. */
export function build(): Promise<void>;
/** Makes the folder that is shipped into sandboxes. */
export function buildAgent(outdir: string): Promise<void>;
