/** One line on stderr, with its time: not every runtime notes it. Never given a token, an environment value or a file's content. */
export function log(text: string): void {
  process.stderr.write(`cellbox ${new Date().toISOString()} ${text.replace(/[\x00-\x1f\x7f]/g, ' ')}\n`);
}

/** What of a thrown value is worth a log line. */
export function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
