import fs from 'node:fs';

/**
 * A small file's text, at once: each detour to the thread pool would cost more than the reading. Never waits: a program
 * inside may have put a FIFO in its place.
 */
export function readText(file: string): string {
  const fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  try {
    return fs.readFileSync(fd, 'utf8');
  } finally {
    fs.closeSync(fd);
  }
}
