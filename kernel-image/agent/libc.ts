import koffi from 'koffi';
import type { LibraryHandle } from 'koffi';

/** Calls of the C library that Node does not offer. Loaded at first use: most sandboxes never need them. */
let library: LibraryHandle | undefined;

/** Declares one function of the C library, by its prototype in C. Throws where the system has no such library. */
export function libcFunction(prototype: string): ReturnType<LibraryHandle['func']> {
  library ??= koffi.load(process.platform === 'darwin' ? 'libSystem.dylib' : 'libc.so.6');
  return library.func(prototype);
}

/** A failed call's error in Node's form: `code` is the symbol, as in `ENOSPC`. Read at once after the call. */
export function lastError(call: string): NodeJS.ErrnoException {
  const errno = koffi.errno();
  const code = Object.entries(koffi.os.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`;
  return Object.assign(new Error(`${code}: ${call} failed`), { code, errno, syscall: call });
}
