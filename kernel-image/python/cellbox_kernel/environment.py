"""The environment and working directory a kernel starts with."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping

# The gateway's own settings and secrets; a kernel never inherits them. A caller may still pass such a name itself.
PRIVATE_PREFIXES = ("CELLBOX_", "KG_", "JUPYTER_TOKEN", "JPY_")

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def home_directory(environ: Mapping[str, str]) -> str:
    """HOME where it can be entered, else the account's, else `/`."""
    candidates = [environ.get("HOME"), _account("pw_dir"), "/"]
    return next(path for path in candidates if path and not cwd_problem(path))


def kernel_environment(environ: Mapping[str, str], requested: Mapping[str, str], cwd: str) -> dict[str, str]:
    """A kernel's whole environment: the gateway's without secrets, made sane, with `requested` on top."""
    env = {name: value for name, value in environ.items() if not name.startswith(PRIVATE_PREFIXES)}
    user = _account("pw_name") or env.get("USER") or "user"
    env |= {"HOME": home_directory(environ), "USER": user, "LOGNAME": user, "PWD": cwd}
    env.setdefault("SHELL", "/bin/bash")
    env.pop("OLDPWD", None)
    if not env.get("LC_ALL") and not env.get("LANG"):
        env["LANG"] = "C.UTF-8"
    # `!pip install` and `python script.py` mean the environment that the kernels themselves run in.
    own_bin = os.path.dirname(sys.executable)
    path = env.get("PATH") or DEFAULT_PATH
    env["PATH"] = path if own_bin in path.split(os.pathsep) else os.pathsep.join([own_bin, path])
    env.update(requested)
    return env


def env_problem(requested: object) -> str | None:
    """Why `requested` can't be a process environment, or None when it can."""
    if not isinstance(requested, dict):
        return "env must be an object of strings"
    for name, value in requested.items():
        if not isinstance(value, str):
            return f"env: the value of {name!r} must be a string"
        if not name or "=" in name or "\0" in name:
            return f"env: {name!r} is not a usable variable name"
        if "\0" in value:
            return f"env: the value of {name!r} contains a NUL character"
        try:
            os.fsencode(name + value)
        except UnicodeEncodeError:
            return f"env: {name!r} contains a lone surrogate"
    return None


def cwd_problem(cwd: object) -> str | None:
    """Why no process can start in `cwd`, or None when one can."""
    if not isinstance(cwd, str):
        return "cwd must be a string"
    if not os.path.isabs(cwd) or "\0" in cwd:
        return f"cwd must be an absolute path: {cwd!r}"
    try:
        is_directory = os.path.isdir(cwd)
        can_enter = os.access(cwd, os.X_OK)
    except UnicodeEncodeError:
        return f"cwd is not a usable path: {cwd!r}"
    if not os.path.lexists(cwd):
        return f"The directory {cwd} does not exist."
    if not is_directory:
        return f"{cwd} is not a directory."
    return None if can_enter else f"The directory {cwd} may not be entered by this user."


def _account(field: str) -> str | None:
    try:
        return getattr(pwd.getpwuid(os.getuid()), field)
    except KeyError:
        return None  # a uid without a passwd entry, as inside some containers
