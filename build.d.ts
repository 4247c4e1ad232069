/** Bundles the service and the agent into `dist/`. */
export function build(): Promise<void>;
/** Whether there is nothing to do for it. */
export function isBuilt(): boolean;
/** Makes the folder that is shipped into sandboxes. */
export function buildAgent(outdir: string): Promise<unknown>;
