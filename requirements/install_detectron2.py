#!/usr/bin/env python3
"""Install Detectron2 into the Python that runs this script.

Upstream publishes Detectron2 as source code on GitHub and nowhere else. Two ways to get it:

``--source wheel`` (default)
    Takes the wheel ``sal-detectron2==0.7.2`` from the Python package index, which holds
    upstream's Python files of commit a59f0563, checks its SHA-256 and repacks it as a
    pure-Python distribution named ``detectron2``. Left out: the compiled ``_C`` (built for one
    Python and one PyTorch) and a stray top-level package ``tools``. YOLOF and RetinaNet need
    neither; NMS and RoIAlign come from torchvision. Needs no compiler and no GitHub.

``--source upstream``
    Builds the same commit from GitHub, compiled operators included. Needs git, a C++ compiler
    (and nvcc for GPU operators), and torch already installed.

The script imports the standard library only. It ends with status 0, or with status 1 and one
message that says what failed, what was expected and what to do.
"""

from __future__ import annotations

import argparse
import email
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = Path("requirements", "constraints.txt")  # relative to ROOT

VERSION = "0.7.2"
SOURCE_NAME = "sal-detectron2"
SOURCE_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
UPSTREAM_URL = "https://github.com/facebookresearch/detectron2.git"
UPSTREAM_COMMIT = "a59f05630a8f205756064244bf5beb8661f96180"

GENERATOR = "yolof_d2-repack 1"  # raise the number when the repacked content changes
SUMMARY = "Detectron2, FAIR's platform for object detection, repacked as pure Python"
# Upstream's own requirements that the wheel above does not list, and one it needs since
# setuptools 81 dropped pkg_resources, which detectron2.model_zoo imports.
ADDED_REQUIREMENTS = (
    "fvcore<0.1.6,>=0.1.5",
    "iopath<0.1.10,>=0.1.7",
    "setuptools<81",
)
SOURCE_DATE_EPOCH = "1713312000"  # 2024-04-17: the same input gives the same wheel


class InstallError(Exception):
    """A step failed. The text says what failed, what was expected and what to do."""


def check_sha256(path: Path, expected: str) -> None:
    """Raise :class:`InstallError` unless the file has the expected SHA-256."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise InstallError(
            f"{path.name} is not the file this project was tested with.\n"
            f"  expected SHA-256: {expected}\n"
            f"  found SHA-256:    {found}\n"
            "Nothing was installed. Try again (the download may be damaged; `pip cache purge` "
            "drops a damaged copy). If it stays, your package index serves another file under "
            "this name: use another index, or --source upstream."
        )


def repack_metadata(text: str) -> str:
    """Turn the METADATA of the source wheel into that of the repacked one.

    Renames the distribution, removes the upper bound on NumPy (set for the compiled part that
    is left out), drops extras, and adds :data:`ADDED_REQUIREMENTS`.

    Raises:
        InstallError: it is not the metadata of ``sal-detectron2`` :data:`VERSION`.
    """
    message = email.message_from_string(text)
    if (message["Name"], message["Version"]) != (SOURCE_NAME, VERSION):
        raise InstallError(
            f"The wheel's METADATA names {message['Name']}=={message['Version']}. Expected the "
            f"wheel {SOURCE_NAME}=={VERSION}: pass that file, or leave out --wheel-file."
        )
    kept = [line for line in message.get_all("Requires-Dist", []) if "extra ==" not in line]
    for key in ("Provides-Extra", "Requires-Dist", "Summary"):
        del message[key]
    message.replace_header("Name", "detectron2")
    message["Summary"] = SUMMARY
    for requirement in (*kept, *ADDED_REQUIREMENTS):
        message["Requires-Dist"] = re.sub(r"^numpy\b[^;]*", "numpy", requirement)
    return message.as_string()


def repack_wheel(source: Path, folder: Path) -> Path:
    """Write the pure-Python wheel ``detectron2-<VERSION>-py3-none-any.whl``.

    Args:
        source: the wheel ``sal-detectron2==<VERSION>``.
        folder: an existing folder for the result.

    Returns:
        The path of the new wheel. The same source always gives the same bytes.

    Raises:
        InstallError: ``source`` is not a readable wheel of that distribution.
    """
    remedy = f"Expected the file of {SOURCE_NAME}=={VERSION}; download it again."
    wheel = [sys.executable, "-m", "wheel"]
    run(
        [*wheel, "unpack", f"--dest={folder}", str(source)],
        failed=f"Cannot unpack {source} as a wheel.",
        remedy=remedy,
    )
    tree = folder / f"{SOURCE_NAME.replace('-', '_')}-{VERSION}"
    shutil.rmtree(tree / "tools")
    for module in tree.glob("detectron2/_C.*"):
        module.unlink()
    info = (tree / f"{tree.name}.dist-info").rename(tree / f"detectron2-{VERSION}.dist-info")
    text = repack_metadata((info / "METADATA").read_text(encoding="utf-8"))
    (info / "METADATA").write_text(text, encoding="utf-8")
    (info / "WHEEL").write_text(
        f"Wheel-Version: 1.0\nGenerator: {GENERATOR}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    (info / "top_level.txt").write_text("detectron2\n")
    run(
        [*wheel, "pack", f"--dest-dir={folder}", str(tree)],
        failed=f"Cannot repack {source} as a wheel.",
        remedy=remedy,
        env={"SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH},
    )
    return folder / f"detectron2-{VERSION}-py3-none-any.whl"


def installed_kind() -> tuple[str, str]:
    """Tell which Detectron2 this Python has.

    Returns:
        A pair (kind, description). Kinds: ``none``; ``wheel`` and ``upstream`` for what this
        version of the script installs; ``outdated`` for what another version of it installed;
        ``foreign`` for everything else.
    """
    try:
        dist = metadata.distribution("detectron2")
    except metadata.PackageNotFoundError:
        spec = importlib.util.find_spec("detectron2")
        if spec is None:
            return "none", "no detectron2"
        where = spec.origin or ", ".join(spec.submodule_search_locations or ["an unknown place"])
        return "foreign", f"a detectron2 that no distribution named 'detectron2' owns, in {where}"
    wheel = dist.read_text("WHEEL") or ""
    name = f"detectron2 {dist.version}"
    if importlib.util.find_spec("detectron2") is None:
        return "outdated", f"{name}, incomplete"
    if f"Generator: {GENERATOR}\n" in wheel and dist.version == VERSION:
        return "wheel", f"{name}, repacked as pure Python"
    if f"Generator: {GENERATOR.split()[0]} " in wheel:
        return "outdated", f"{name}, repacked by another version of this script"
    try:
        commit = json.loads(dist.read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"]
    except (KeyError, TypeError, ValueError):
        return "foreign", f"{name}, not installed by this script"
    if commit == UPSTREAM_COMMIT:
        return "upstream", f"{name}, built from upstream commit {commit[:8]}"
    return "foreign", f"{name}, built from commit {commit[:8]}"


def run(
    command: Sequence[str],
    *,
    failed: str,
    remedy: str,
    quiet: bool = True,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command in the project's root folder.

    Args:
        command: program and arguments.
        failed: what to say if it fails, a full sentence.
        remedy: what was expected and what to do about it.
        quiet: keep the output and return it; show only its error lines, and only on failure.
            Otherwise the output goes straight to the terminal.
        env: environment variables to add.

    Raises:
        InstallError: if the program is missing or ends with a non-zero status.
    """
    pipe = subprocess.PIPE if quiet else None
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PIP_NO_INPUT": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=subprocess.STDOUT if quiet else None,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise InstallError(f"{failed}\n  {command[0]}: {error.strerror}\n{remedy}") from None
    if done.returncode != 0:
        shown = "".join(f"  {line}\n" for line in telling_lines(done.stdout or ""))
        raise InstallError(f"{failed}\n{shown}{remedy}")
    return done.stdout or ""


def telling_lines(output: str, most: int = 8) -> list[str]:
    """Return the lines of a failed command's output that are worth showing."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    return (errors or lines)[-most:]


def pip(*arguments: str) -> list[str]:
    """Return the command line that runs pip of this Python."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def download_wheel(folder: Path) -> Path:
    """Download the source wheel into ``folder`` and return its path."""
    requirement = f"{SOURCE_NAME}=={VERSION}"
    run(
        pip(
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version=3.10",  # the wheel's tag; its Python files run on any later one
            "--implementation=cp",
            f"--dest={folder}",
            requirement,
        ),
        failed=f"pip could not download {requirement}.",
        remedy=(
            "Expected a package index that has it (PyPI does). Check the network, a proxy "
            "(HTTPS_PROXY) and pip's index (`pip config list`, PIP_INDEX_URL). Without a network: "
            f"fetch the file with `pip download --no-deps --only-binary=:all: "
            f"--python-version=3.10 {requirement}` elsewhere and pass it as --wheel-file."
        ),
    )
    found = sorted(folder.glob("*.whl"))
    if len(found) != 1:
        raise InstallError(
            f"pip downloaded {len(found)} wheels for {requirement}, expected 1. Try again; if it "
            "stays, pass the file yourself with --wheel-file."
        )
    return found[0]


def install_build_tools() -> None:
    """Install what builds and repacks wheels, at the tested versions."""
    run(
        pip("install", "-c", CONSTRAINTS.as_posix(), "setuptools", "wheel"),
        failed="pip could not install setuptools and wheel, which building a wheel needs.",
        remedy="Check the network and pip's index (`pip config list`, PIP_INDEX_URL).",
    )


def install_wheel(wheel_file: Path | None, replace: bool) -> None:
    """Install the repacked wheel and what it requires, at the tested versions.

    Args:
        wheel_file: the source wheel, if it is at hand; None downloads it.
        replace: replace a Detectron2 of the same version.
    """
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        folder = Path(name)
        (folder / "source").mkdir()
        source = wheel_file or download_wheel(folder / "source")
        if not source.is_file():
            raise InstallError(
                f"There is no file {source}. Pass an existing wheel as --wheel-file."
            )
        check_sha256(source, SOURCE_SHA256)
        install_build_tools()
        wheel = repack_wheel(source, folder)
        remedy = (
            "Expected a package index that has the versions in requirements/constraints.txt, and "
            "a writable Python environment. Check the network and pip's index (`pip config list`, "
            "PIP_INDEX_URL); if pip speaks of an externally managed environment or permissions, "
            "use a virtual environment: `make .venv/.installed`, or `python3 -m venv`."
        )
        run(
            pip("install", "-c", CONSTRAINTS.as_posix(), str(wheel)),
            failed=f"pip could not install {wheel.name}.",
            remedy=remedy,
            # Also where pip builds fvcore, iopath and antlr4 from source. Not as an option:
            # pip before 25.3 has none of that name, and ignores the variable.
            env={"PIP_BUILD_CONSTRAINT": CONSTRAINTS.as_posix()},
        )
        if replace:
            run(
                pip("install", "--force-reinstall", "--no-deps", str(wheel)),
                failed=f"pip could not replace the installed detectron2 by {wheel.name}.",
                remedy=remedy,
            )


def install_upstream(replace: bool) -> None:
    """Build and install upstream's commit from GitHub, compiled operators included."""
    if importlib.util.find_spec("torch") is None:
        raise InstallError(
            "torch is not installed in this Python, and building Detectron2 needs it. First run "
            f"`{sys.executable} -m pip install -c {CONSTRAINTS.as_posix()} torch torchvision`."
        )
    compiler = (os.environ.get("CXX") or "c++").split()[0]
    for program, package in (("git", "git"), (compiler, "g++")):
        if shutil.which(program) is None:
            raise InstallError(
                f"There is no program '{program}', which building Detectron2 from source needs. "
                f"Install it (Debian, Ubuntu: `apt-get install {package}`), or use the default "
                "--source wheel, which needs neither git nor a compiler."
            )
    run(
        ["git", "ls-remote", "--exit-code", UPSTREAM_URL, "HEAD"],
        failed=f"git cannot reach {UPSTREAM_URL}.",
        remedy="Check the network and a proxy, or use the default --source wheel.",
    )
    install_build_tools()
    extra = ["--force-reinstall", "--no-deps"] if replace else []
    url = f"detectron2 @ git+{UPSTREAM_URL}@{UPSTREAM_COMMIT}"
    command = ("install", "-c", CONSTRAINTS.as_posix(), "--no-build-isolation")
    run(
        pip(*command, *extra, url),
        failed=f"Building Detectron2 {UPSTREAM_COMMIT[:8]} from source failed; see pip's output.",
        remedy=(
            "Expected a C++17 compiler that suits the installed torch, and for GPU operators a "
            "CUDA toolkit of torch's CUDA version (CUDA_HOME). To go without compiled operators: "
            "the default --source wheel."
        ),
        quiet=False,
        env={"PIP_BUILD_CONSTRAINT": ""},  # pip refuses it without build isolation
    )


def check_import() -> str:
    """Import Detectron2 in a fresh process and return a line that describes it.

    The import needs torch; without torch it is not tried.
    """
    if importlib.util.find_spec("torch") is None:
        return "not imported: torch is not installed yet"
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import detectron2, torch, torchvision\n"
        "from detectron2 import model_zoo\n"
        "model_zoo.get_config_file('COCO-Detection/retinanet_R_50_FPN_1x.yaml')\n"
        "print('with torch', torch.__version__, 'and torchvision', torchvision.__version__)"
    )
    return run(
        [sys.executable, "-c", code],
        failed="Detectron2 was installed, but importing it failed.",
        remedy=(
            "Expected torch and torchvision of matching versions, as in "
            f"requirements/constraints.txt: `{sys.executable} -m pip install -c "
            f"{CONSTRAINTS.as_posix()} torch torchvision`."
        ),
    ).strip()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", choices=("wheel", "upstream"), default="wheel")
    parser.add_argument(
        "--wheel-file",
        type=Path,
        metavar="FILE",
        help=f"with --source wheel: the file of {SOURCE_NAME}=={VERSION}, instead of a download",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace whatever Detectron2 is installed"
    )
    args = parser.parse_args(argv)
    if args.wheel_file is not None and args.source != "wheel":
        parser.error("--wheel-file goes with --source wheel only")
    return args


def install(source: str, wheel_file: Path | None, force: bool) -> str:
    """Install Detectron2 unless the right one is there, and return a line that says what is.

    Raises:
        InstallError: if any step fails, or if another Detectron2 is there and ``force`` is False.
    """
    if sys.version_info < (3, 10):  # noqa: UP036 (also run by hand, before pip checks anything)
        raise InstallError(
            f"This Python is {sys.version.split()[0]}, expected 3.10 or newer. Run the script "
            "with a newer one, inside a virtual environment."
        )
    if not (ROOT / CONSTRAINTS).is_file():
        raise InstallError(
            f"There is no {CONSTRAINTS.as_posix()} beside this script. Expected a full checkout "
            "of the project; run the script from there."
        )
    run(
        pip("--version"),
        failed=f"{sys.executable} has no pip.",
        remedy=f"Run `{sys.executable} -m ensurepip`, or use a virtual environment with pip.",
    )
    kind, description = installed_kind()
    if kind == source and not force:
        return f"{description}: already installed, {check_import()}"
    if kind == "foreign" and not force:
        raise InstallError(
            f"This Python already has {description}.\n"
            "Expected none, or one that this script installed: replacing it could break other "
            "work. yolof_d2 runs with Detectron2 0.6 or newer, so you may keep it; to replace "
            "it, run this script again with --force, or use a new virtual environment."
        )
    if source == "wheel":
        install_wheel(wheel_file, replace=kind != "none")
    else:
        install_upstream(replace=kind != "none")
    importlib.invalidate_caches()
    return f"{installed_kind()[1]}: installed, {check_import()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    args = parse_args(argv)
    wheel_file = args.wheel_file.expanduser().resolve() if args.wheel_file else None
    try:
        print(install(args.source, wheel_file, args.force))
    except InstallError as error:
        print(f"install_detectron2.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install_detectron2.py: stopped; run it again to finish.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
