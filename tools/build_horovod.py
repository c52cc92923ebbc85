"""Builds Horovod 0.28.1 against this environment's torch and installs it: `make horovod`.

Its release, the last one there is, does not build as it stands: its CMake files ask for C++14 and
torch's headers need C++20, and they ask for the module distutils, which Python 3.12 does not have.
With these lines changed it does. It is built with gloo alone: no MPI, tensors in host memory.

The wheel is kept in ${XDG_CACHE_HOME:-~/.cache}/distrain, under a name that says what it was built
for; where that is there already, nothing is built.

Usage: PYTHON tools/build_horovod.py, with the environment's own Python
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

VERSION = "0.28.1"
SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"

TOOLS = ("cmake==3.31.10", "setuptools==80.9.0", "wheel==0.45.1", "packaging==25.0")
"""What builds it. From 4.0 on, CMake refuses the files of the gloo that comes with it."""

NEEDS = ("cffi", "cloudpickle", "packaging", "psutil", "pyyaml")
"""What it imports, beside torch."""

CHANGES = {
    "CMakeLists.txt": {"set(CMAKE_CXX_STANDARD 14)": "set(CMAKE_CXX_STANDARD 20)"},
    "horovod/torch/CMakeLists.txt": {
        "set(CMAKE_CXX_STANDARD 14)": "set(CMAKE_CXX_STANDARD 20)",
        "from distutils.sysconfig import get_python_inc; print(get_python_inc())": (
            "import sysconfig; print(sysconfig.get_path('include'))"
        ),
    },
    # With a torch for GPUs it would want to be built by nvcc; it is for host memory all the same.
    "cmake/Modules/FindPytorch.cmake": {
        "(torch.version.cuda is not None) and (CUDA_HOME is not None)": "False",
    },
}
"""By file, what is written in place of what."""

SETTINGS = {
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    # Else it takes what this very processor has, and machines may share the cache.
    "HOROVOD_BUILD_ARCH_FLAGS": "-mtune=generic",
}


def main() -> None:
    """Builds unless that was done before, installs unless it is there, and tries an import."""
    wheel = cache_folder() / name_of_build() / wheel_name()
    if is_installed(wheel):
        print(f"Horovod {VERSION} is there already, built for torch {torch_version()}")
        return
    if not wheel.exists():
        check_compiler()
        build(wheel)
    print(f"== installing {wheel}")
    pip("install", "--constraint", str(CONSTRAINTS), *NEEDS)
    pip("install", "--no-deps", "--force-reinstall", str(wheel))
    # Loads the compiled part, so that a wheel which does not fit is found here.
    subprocess.run([sys.executable, "-c", "import horovod.torch"], check=True)


def torch_version() -> str:
    """The version of torch that is installed here, such as 2.13.0+cpu."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("Horovod is built against torch, and there is none here: run `make horovod`")


def cache_folder() -> Path:
    """Where wheels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "distrain"


def name_of_build() -> str:
    """Says all that the compiled part depends on, this file's changes among it."""
    recipe = hashlib.sha256(repr((SHA256, CHANGES, SETTINGS)).encode()).hexdigest()[:8]
    python = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    return f"horovod-{VERSION}-torch-{torch_version()}-{python}-{recipe}"


def wheel_name() -> str:
    """The file's name as pip wants it."""
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return f"horovod-{VERSION}-{version}-{version}-{platform}.whl"


def is_installed(wheel: Path) -> bool:
    """Whether what is installed came from this very wheel: pip notes where it took it from."""
    try:
        source = importlib.metadata.distribution("horovod").read_text("direct_url.json") or ""
    except importlib.metadata.PackageNotFoundError:
        return False
    return wheel.as_uri() in source


def check_compiler() -> None:
    """Ends with what to install where something is missing that pip can't bring."""
    missing = [name for name in ("make", "gcc", "g++") if shutil.which(name) is None]
    if missing:
        sys.exit(
            f"to build Horovod, {', '.join(missing)} must be installed: "
            "apt-get install build-essential, or what your system has for it"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        sys.exit(
            f"to build Horovod, Python's headers must be installed, and there is no {header}: "
            "apt-get install python3-dev, or what your system has for it"
        )


def build(wheel: Path) -> None:
    """Compiles the release, changed as said above, to that file."""
    print(f"== building Horovod {VERSION} for torch {torch_version()} (once; a few minutes)")
    with tempfile.TemporaryDirectory(prefix="distrain-horovod-") as name:
        folder = Path(name)
        pip("install", "--target", str(folder / "tools"), *TOOLS)
        environment = {
            **os.environ,
            **SETTINGS,
            "PYTHONPATH": str(folder / "tools"),
            "HOROVOD_CMAKE": str(folder / "tools" / "bin" / "cmake"),
            "MAKEFLAGS": os.environ.get("MAKEFLAGS") or f"-j{os.cpu_count() or 1}",
        }
        source = unpacked(folder, environment)
        change(source)
        log = folder / "log"
        command = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
        with log.open("w") as out:
            done = subprocess.run(
                [sys.executable, "-m", "pip", *command, "--verbose", str(source)],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            kept = cache_folder() / "horovod-build.log"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, kept)
            lines = [line for line in log.read_text().splitlines() if "error" in line.lower()]
            shown = "\n".join(lines[:10])
            sys.exit(f"Horovod did not build; all that was said is in {kept}\n{shown}")
        (built,) = folder.glob("horovod-*.whl")
        keep(built, wheel)


def unpacked(folder: Path, environment: Mapping[str, str]) -> Path:
    """The release's source, whose digest was compared."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"horovod=={VERSION} --hash=sha256:{SHA256}\n")
    pip(
        *("download", "--no-deps", "--no-build-isolation", "--no-binary", "horovod"),
        *("--require-hashes", "--requirement", str(wanted), "--dest", str(folder)),
        environment=environment,
    )
    with tarfile.open(folder / f"horovod-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"horovod-{VERSION}"


def change(source: Path) -> None:
    """Changes the lines that keep it from building."""
    for name, changes in CHANGES.items():
        text = (source / name).read_text()
        for before, after in changes.items():
            if before not in text:
                sys.exit(f"{name} of Horovod {VERSION} has no `{before}` to change")
            text = text.replace(before, after)
        (source / name).write_text(text)


def keep(built: Path, wheel: Path) -> None:
    """Puts the wheel into the cache, whole or not at all."""
    wheel.parent.mkdir(parents=True, exist_ok=True)
    aside = wheel.with_suffix(f".{os.getpid()}.partial")
    shutil.copyfile(built, aside)
    aside.rename(wheel)


def pip(*arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Runs pip of this environment; what it says of an error is shown."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        sys.exit(f"`pip {' '.join(arguments)}` has failed")


if __name__ == "__main__":
    main()
