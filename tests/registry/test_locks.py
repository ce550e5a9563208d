"""A registry on a disk without locks, as some network drives are, says so at once and names the cure."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

# byte-range locks fail, and nothing else
NO_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#define FAILING(name) \\
    int name(int file, int command, ...) { \\
        va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest); \\
        if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) { \\
            errno = atoi(getenv("LOCK_ERROR")); return -1; } \\
        int (*real)(int, int, ...) = dlsym(RTLD_NEXT, #name); \\
        return real(file, command, argument); }
FAILING(fcntl)
FAILING(fcntl64)
"""


@pytest.fixture(scope="module")
def without_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library to preload."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler to take the locks away")
    folder = tmp_path_factory.mktemp("locks")
    (folder / "no_locks.c").write_text(NO_LOCKS)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(folder / "no_locks.so"), str(folder / "no_locks.c"), "-ldl"],
        check=True,
    )
    return folder / "no_locks.so"


@pytest.mark.parametrize(
    "code", [errno.ENOLCK, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP], ids=lambda code: errno.errorcode[code]
)
@pytest.mark.parametrize("command", ["scan", "list"])
def test_a_disk_without_locks_is_named_at_once(home: Path, without_locks: Path, command: str, code: int) -> None:
    (home / "lib").mkdir()
    environment = {**os.environ, "LD_PRELOAD": str(without_locks), "LOCK_ERROR": str(code)}
    arguments = [command] + [str(home / "lib")] * (command == "scan")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "hnetkit", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "files there cannot be locked" in done.stderr
    assert "Hint: set HNETKIT_HOME to a folder on a disk of this machine" in done.stderr
    assert time.monotonic() - started < 20, "SQLite's own patience is 30 seconds"
