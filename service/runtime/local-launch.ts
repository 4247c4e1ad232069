import path from 'node:path';
import { largestFileBytes } from './instance-start';
import { bubblewrapArguments } from './local-bubblewrap';
import type { Cgroup } from './local-cgroup';
import type { LocalHost } from './local-host';
import type { Resources } from './runtime';

/** What lies between the service and a local sandbox's supervisor: two tiny programs, and the wall. */

/** Of one sandbox. Paths are the host's. */
export interface Launch {
  /** Has `workspace`, `tmp`, `venv` and `etc` by the time that it is told to `go`. */
  directory: string;
  socketDirectory: string;
  supervisor: string;
  resources: Resources;
  network: 'full' | 'none';
  uid: number | undefined;
  cgroup: Cgroup | undefined;
}

/** For `/bin/sh`, which becomes the sandbox once a line comes by its standard input. */
export function launchArguments({ layout, facts }: LocalHost, launch: Launch): string[] {
  const own = (name: string) => path.join(launch.directory, name);
  const { resources, cgroup } = launch;
  const node = [process.execPath, launch.supervisor];
  const wall =
    layout === undefined
      ? [facts.baseExecutable, '-I', '-S', '-c', INIT_PROGRAM]
      : [
          layout.bubblewrap,
          ...bubblewrapArguments(layout, {
            workspace: own('workspace'),
            temporary: own('tmp'),
            environment: own('venv'),
            etc: own('etc'),
            tunnel: launch.socketDirectory,
            network: launch.network,
            uid: launch.uid,
            cgroups: cgroup?.places ?? [],
          }),
        ];
  const entrances = cgroup?.entrances ?? [];
  const limits = [resources.openFiles, largestFileBytes(resources) / 512, entrances.length];
  return [
    '-c',
    LAUNCH_SCRIPT,
    'cellbox',
    own('workspace'),
    ...limits.map(String),
    ...entrances,
    ...wall,
    ...node,
  ];
}

/**
 * Shell: enters the control groups before anything of the sandbox runs, sets limits that processes inherit, and becomes
 * the program once its standard input says so. Arguments: the program's directory, open files, largest file in blocks of 512
 * bytes, number of control group files, those files, the program.
 */
const LAUNCH_SCRIPT = `
directory=$1 files=$2 blocks=$3 groups=$4
shift 4
while [ "$groups" -gt 0 ]; do
  echo $$ > "$1" || { echo "could not enter the control group $1" >&2; exit 97; }
  shift
  groups=$((groups - 1))
done
ulimit -c 0
ulimit -f "$blocks" 2>/dev/null || true # lower already
ulimit -n "$files" 2>/dev/null || ulimit -n "$(ulimit -H -n)"
read -r _ || exit 98 # whoever started this has given up
cd "$directory" || exit 98
exec "$@" < /dev/null
`;

/**
 * Python, for hosts without bubblewrap: the init of a sandbox. It runs the supervisor and adopts every process whose
 * parent dies (PR_SET_CHILD_SUBREAPER, 36), so that no double fork leads out of the tree; it ends when the supervisor
 * ends, and then takes with it whatever is left. If it is killed itself, the supervisor dies (PR_SET_PDEATHSIG, 1).
 */
export const INIT_PROGRAM = `
import os, signal, sys, time
def prctl(option, value):
    if sys.platform == "linux":
        import ctypes
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
prctl(36, 1)
me = os.getpid()
supervisor = os.fork()
if supervisor == 0:
    prctl(1, signal.SIGKILL)
    if os.getppid() != me:
        os._exit(1)
    os.environ["CELLBOX_INIT"] = "1"
    os.execv(sys.argv[1], sys.argv[1:])
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda *_: os.kill(supervisor, signal.SIGTERM))
status = None
while status is None:
    pid, how = os.wait()
    if pid == supervisor:
        status = os.waitstatus_to_exitcode(how)
def children():
    found = []
    for name in os.listdir("/proc") if sys.platform == "linux" else []:
        try:
            with open("/proc/%s/stat" % name, "rb") as stat:
                if int(stat.read().rsplit(b")", 1)[1].split()[1]) == me:
                    found.append(int(name))
        except (OSError, ValueError, IndexError):
            pass
    return found
deadline = time.monotonic() + 10
try:
    while time.monotonic() < deadline:
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        os.wait()
except ChildProcessError:
    pass
sys.exit(status if 0 <= status <= 255 else 1)
`;
