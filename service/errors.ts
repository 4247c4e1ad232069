/**
 * The words for what went wrong. They are Connect's, so the agent needs no translation; a word exists only
 * where some caller would act differently. Which HTTP status a word becomes is decided by each surface's
 * `error-response.ts`, never here.
 */
export type ErrorCode =
  | 'invalid_argument'
  | 'unauthenticated'
  | 'permission_denied'
  | 'not_found'
  | 'already_exists'
  | 'failed_precondition'
  | 'resource_exhausted'
  | 'deadline_exceeded'
  | 'unavailable'
  | 'unimplemented'
  | 'internal';

/**
 * The one error class of the service. `message` is written for the caller and may reach them;
 * `cause` is for the log only. `remedy` says what the caller can do, where there is something.
 */
export class ServiceError extends Error {
  readonly code: ErrorCode;
  readonly remedy: string | undefined;
  /** When the same request is going to succeed by itself, and nothing was done: clients may wait and repeat it. */
  readonly retryInMs: number | undefined;

  constructor(
    code: ErrorCode,
    message: string,
    options: { cause?: unknown; remedy?: string; retryInMs?: number } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'ServiceError';
    this.code = code;
    this.remedy = options.remedy;
    this.retryInMs = options.retryInMs;
  }

  /** Anything thrown becomes a ServiceError; the unknown becomes `internal` with a text that leaks nothing. */
  static from(error: unknown): ServiceError {
    if (error instanceof ServiceError) return error;
    return new ServiceError('internal', 'Something went wrong inside the service', { cause: error });
  }
}

/** Makes an exhaustive switch a compile error when a case is added and not handled. */
export function assertNever(value: never): never {
  throw new Error(`unexpected value: ${JSON.stringify(value)}`);
}
