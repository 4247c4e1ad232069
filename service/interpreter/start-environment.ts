/**
 * Variables that a Python process, or a library in it, reads once: at its start, or when it is imported, which may have
 * happened before the kernel was anybody's. Setting them later would change nothing, or only half.
 */
const READ_ONCE =
  /^(PYTHON.*|LD_.*|LC_.*|LANG|LANGUAGE|TZ|HOME|XDG_.*|MPL.*|IPYTHON.*|JUPYTER.*|OMP_.*|KMP_.*|GOMP_.*|MKL_.*|OPENBLAS_.*|BLIS_.*|NUMEXPR_.*|NUMBA_.*|NPY_.*|NUMPY_.*|MALLOC_.*|GLIBC_.*|CUDA_.*)$/;

type Environment = Readonly<Record<string, string>>;

/** Whether a kernel that was started with one environment must be a new process to have the other one. */
export function needsNewProcess(startedWith: Environment, wanted: Environment): boolean {
  return Object.entries(wanted).some(([name, value]) => READ_ONCE.test(name) && startedWith[name] !== value);
}
