import { constants } from 'node:fs';
import os from 'node:os';
import { libcFunction } from '../libc';

/**
 * Starting and waiting for processes by the C library. Node copies its own page tables for each child (`fork`), which
 * takes this agent over 2 ms of standstill; `posix_spawn` shares them until the child is the other program: 0.2 ms.
 */

const onLinux = process.platform === 'linux';
/** SETSIGDEF, SETSIGMASK, SETSID; elsewhere also: nothing is inherited that isn't named. */
const FLAGS = 0x04 | 0x08 | (onLinux ? 0x80 : 0x400 | 0x4000);
const WNOHANG = 1;
/** Larger than any system's form of these structures. */
const STRUCT_BYTES = 512;

type Call = ReturnType<typeof libcFunction>;
let calls: Record<keyof typeof PROTOTYPES, Call> | undefined;

const PROTOTYPES = {
  spawn:
    'int posix_spawn(_Out_ int *pid, const char *path, void *actions, void *attr, const char **argv, const char **envp)',
  initActions: 'int posix_spawn_file_actions_init(void *actions)',
  addDup: 'int posix_spawn_file_actions_adddup2(void *actions, int fd, int as)',
  addOpen:
    'int posix_spawn_file_actions_addopen(void *actions, int fd, const char *path, int flags, unsigned int mode)',
  addChdir: 'int posix_spawn_file_actions_addchdir_np(void *actions, const char *path)',
  destroyActions: 'int posix_spawn_file_actions_destroy(void *actions)',
  initAttr: 'int posix_spawnattr_init(void *attr)',
  setFlags: 'int posix_spawnattr_setflags(void *attr, short flags)',
  setDefaults: 'int posix_spawnattr_setsigdefault(void *attr, void *set)',
  setMask: 'int posix_spawnattr_setsigmask(void *attr, void *set)',
  destroyAttr: 'int posix_spawnattr_destroy(void *attr)',
  fillSet: 'int sigfillset(void *set)',
  emptySet: 'int sigemptyset(void *set)',
  waitpid: 'int waitpid(int pid, _Out_ int *status, int options)',
} as const;

function libc(): Record<keyof typeof PROTOTYPES, Call> {
  calls ??= Object.fromEntries(
    Object.entries(PROTOTYPES).map(([name, prototype]) => [name, libcFunction(prototype)]),
  ) as Record<keyof typeof PROTOTYPES, Call>;
  return calls;
}

export interface SpawnRequest {
  argv: readonly [string, ...string[]];
  env: Readonly<Record<string, string>>;
  cwd: string;
  /** What becomes standard input, output and errors; `undefined` is /dev/null. */
  stdio: ReadonlyArray<number | undefined>;
}

/**
 * Starts a program (by its path) as the leader of a new session, with all signals as usual, and gives its id. Whoever
 * calls it waits for its end with `tryWait`, or it stays a zombie.
 *
 * @throws the system's error, with its `code`
 */
export function posixSpawn({ argv, env, cwd, stdio }: SpawnRequest): number {
  const call = libc();
  const actions = Buffer.alloc(STRUCT_BYTES);
  const attr = Buffer.alloc(STRUCT_BYTES);
  const signals = Buffer.alloc(STRUCT_BYTES);
  check(call.initActions(actions));
  check(call.initAttr(attr));
  try {
    for (const [target, fd] of stdio.entries()) {
      check(
        fd === undefined
          ? call.addOpen(actions, target, '/dev/null', constants.O_RDWR, 0)
          : call.addDup(actions, fd, target),
      );
    }
    check(call.addChdir(actions, cwd));
    check(call.fillSet(signals));
    check(call.setDefaults(attr, signals));
    check(call.emptySet(signals));
    check(call.setMask(attr, signals));
    check(call.setFlags(attr, FLAGS));
    const pid: [number] = [0];
    const variables = Object.entries(env).map(([name, value]) => `${name}=${value}`);
    check(call.spawn(pid, argv[0], actions, attr, [...argv, null], [...variables, null]));
    return pid[0];
  } finally {
    call.destroyActions(actions);
    call.destroyAttr(attr);
  }
}

/** The wait status of a child that has ended, which it then no longer is; `undefined` while it runs. */
export function tryWait(pid: number): number | undefined {
  const status: [number] = [0];
  return libc().waitpid(pid, status, WNOHANG) === pid ? status[0] : undefined;
}

/** These functions give their error back instead of setting errno. */
function check(errno: unknown): void {
  if (errno === 0) return;
  const code =
    Object.entries(os.constants.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${String(errno)}`;
  throw Object.assign(new Error(`${code}: posix_spawn failed`), { code, syscall: 'posix_spawn' });
}
