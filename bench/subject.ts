/** What one run of some code gave, and how long it took from request to end, in milliseconds. */
export interface Sample {
  ms: number;
  stdout: string;
  /** Kinds of all results: MIME types, or the SDK's names for them. */
  types: string[];
}

/** One of the systems that are compared. Started by its factory; `close` ends everything it started, once or more. */
export interface Subject {
  readonly name: string;
  /** What is behind the name, for the reader of the results. */
  readonly description: string;
  /** Names of the only scenarios that it takes part in; all of them where absent. */
  readonly scenarios?: readonly string[];
  run(code: string): Promise<Sample>;
  /** Makes a new context (a new kernel) and runs the code in it; the time covers both, not the removal afterwards. */
  newContext(code: string): Promise<Sample>;
  close(): Promise<void>;
}

/** Rejects when `promise` has not settled in time; what it waited for is the caller's to end. */
export async function within<T>(seconds: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not done after ${seconds} s`)), seconds * 1000);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
