/**
 * The two tiny programs between the service and a local sandbox's supervisor.
 */

/**
 * Shell: enters the control groups before anything of the sandbox runs, sets limits that processes inherit, and becomes
 * the program. Arguments: open files, largest file in blocks of 512 bytes, number of control group files, those files, the
 * program.
 */
export const LAUNCH_SCRIPT = `
files=$1 blocks=$2 groups=$3
shift 3
while [ "$groups" -gt 0 ]; do
  echo $$ > "$1" || { echo "could not enter the control group $1" >&2; exit 97; }
  shift
  groups=$((groups - 1))
done
ulimit -c 0
ulimit -f "$blocks" 2>/dev/null || true # lower already
ulimit -n "$files" 2>/dev/null || ulimit -n "$(ulimit -H -n)"
exec "$@"
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
