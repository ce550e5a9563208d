"""Build what is released, check it, and run the demo from a fresh installation of it: `make dist`.

Builds from the last commit, so that nothing else in the working tree gets in. The wheel is built from the source
distribution, as package indexes and distributions do it. Prints a line for each step and stops at the first fault.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

REPOSITORY = Path(__file__).resolve().parent.parent
DIST = REPOSITORY / "dist"

MOST_BYTES = 12 << 20
"""Of the wheel and of the source distribution: the bundled model takes 8 MB of it."""

IN_THE_SOURCES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "docs/architecture.md",
    "docs/grid.png",
    "pyproject.toml",
    "tests/conftest.py",
    "tools/rooms.py",
)
"""Files that the source distribution must hold beside the package: what a packager builds, tests and reads."""

ROOTS = {"hnetkit": "hnetkit", "kernels": "hnetkit/kernels", "registry": "hnetkit/registry"}
"""Folder of the repository -> folder of the wheel."""

LITTER = re.compile(r"(^|/)(__pycache__|\.pytest_cache|\.hypothesis|\.venv|build|dist)/|\.py[cod]$|~$|\.DS_Store$")


def main() -> int:
    try:
        version = released_version()
        wheel, sources = build()
        check_metadata(wheel, version)
        check_wheel(wheel)
        check_sources(sources, version)
        try_out(wheel, version)
    except Fault as fault:
        sys.stderr.write(f"Error: {fault}\n")
        return 1
    say(f"Done: {wheel.name}, {sources.name}")
    return 0


class Fault(Exception):
    """A reason not to release this."""


def released_version() -> str:
    """Returns the version to release; raises Fault where files are not committed or the changelog lacks it."""
    if changed := output("git", "status", "--porcelain"):
        raise Fault(f"commit these first, or remove them:\n{changed}")
    stated = re.search(r'^version = "([^"]+)"$', (REPOSITORY / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    if stated is None:
        raise Fault("pyproject.toml: no version")
    version = stated[1]
    if f"\n## [{version}]" not in (REPOSITORY / "CHANGELOG.md").read_text("utf-8"):
        raise Fault(f"CHANGELOG.md: no section [{version}]")
    say(f"hnetkit {version}, commit {output('git', 'rev-parse', '--short', 'HEAD')}")
    return version


def build() -> tuple[Path, Path]:
    """Builds the last commit into an empty `DIST`; returns the wheel and the source distribution."""
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name, "tree")
        tree.mkdir()
        archive = Path(name, "tree.tar")
        run("git", "archive", "--output", archive, "HEAD")
        run("tar", "-xf", archive, "-C", tree)
        # the setuptools of this environment, which constraints.txt pins
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, tree)
    (wheel,), (sources,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    for made in (wheel, sources):
        size = made.stat().st_size
        if size > MOST_BYTES:
            raise Fault(f"{made.name}: {size:,} bytes; at most {MOST_BYTES:,}")
        say(f"{made.name}: {size / 1e6:.1f} MB")
    return wheel, sources


def check_metadata(wheel: Path, version: str) -> None:
    """Raises Fault where an index would refuse the files, or the version is another one."""
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(DIST.iterdir()))
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(opened.read(name))
    if metadata["Version"] != version:
        raise Fault(f"{wheel.name}: version {metadata['Version']}, pyproject.toml says {version}")


def check_wheel(wheel: Path) -> None:
    """Raises Fault unless the wheel holds exactly the committed files of the package, and its own records."""
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if not name.endswith("/")}
    found, wanted = {name for name in names if ".dist-info/" not in name}, wanted_in_wheel()
    require_none(wheel.name, "is missing", wanted - found)
    require_none(wheel.name, "does not belong there", found - wanted)


def wanted_in_wheel() -> set[str]:
    """Returns the committed files of the package, `py.typed` and the demo's among them, as the wheel names them."""
    wanted = set()
    for folder, place in ROOTS.items():
        for path in map(PurePosixPath, output("git", "ls-files", "-z", folder).split("\0")):
            if path.name:
                wanted.add(str(PurePosixPath(place) / path.relative_to(folder)))
    return wanted


def check_sources(sources: Path, version: str) -> None:
    """Raises Fault where something to build, test or read is missing, or litter is in."""
    with tarfile.open(sources) as opened:
        root = f"hnetkit-{version}/"
        found = {member.name.removeprefix(root) for member in opened.getmembers() if member.isfile()}
    package = output("git", "ls-files", "-z", *ROOTS, "tests").split("\0")
    require_none(sources.name, "is missing", {*IN_THE_SOURCES, *filter(None, package)} - found)
    require_none(sources.name, "does not belong there", filter(LITTER.search, found))


def try_out(wheel: Path, version: str) -> None:
    """Installs the wheel into a fresh environment and runs it there, in an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        run(sys.executable, "-m", "venv", folder / "env")
        programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        python = programs / "python"
        say("installing the wheel into a fresh environment")
        pip: list[str | Path] = [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--only-binary",
            ":all:",
        ]
        run(*pip, "-c", REPOSITORY / "constraints.txt", f"{wheel}[all]")
        work = folder / "work"
        work.mkdir()
        # nothing of the repository or of the person's own library
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HNETKIT_", "PYTHON"))}
        quiet = {"OMP_NUM_THREADS": "1", **kept, "HNETKIT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        said = output(programs / "hnetkit", "--version", cwd=work, env=quiet)
        if said != f"hnetkit, version {version}":
            raise Fault(f"the installed command says {said!r}")
        place = output(python, "-c", "import hnetkit.kernels as kernels; print(kernels.__file__)", cwd=work, env=quiet)
        if folder not in Path(place).parents:
            raise Fault(f"the fresh environment imports {place}")
        say("hnetkit demo")
        run(programs / "hnetkit", "demo", "--quiet", cwd=work, env=quiet)
        if not (work / "demo-output" / "grid.png").is_file():
            raise Fault("hnetkit demo left no grid.png")


def require_none(where: str, fault: str, names: Iterable[str]) -> None:
    wrong = sorted(names)
    if wrong:
        raise Fault(f"{where}: {fault}: {', '.join(wrong[:10])}{' and more' if len(wrong) > 10 else ''}")


def run(*command: str | Path, cwd: Path = REPOSITORY, env: dict[str, str] | None = None) -> None:
    """Runs a command and shows what it prints only if it fails."""
    output(*command, cwd=cwd, env=env)


def output(*command: str | Path, cwd: Path = REPOSITORY, env: dict[str, str] | None = None) -> str:
    arguments: Sequence[str] = [os.fspath(part) for part in command]
    done = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise Fault(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
