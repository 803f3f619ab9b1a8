"""Builds Corral, the embedded guest, and vmm, which is a monitor: `python -m ringfence.guest.program.build [--check]`.

The compiler is the ziglang package, in one fixed version, since another may choose other instructions.
An image depends on the sources and on that version alone: sources are named relative to their
directory, and no path, date or build number goes into it. So anybody can show with `--check` that the
images that are shipped are what the sources say.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

ZIGLANG = "0.17.0"

HERE = Path(__file__).parent
SOURCE = HERE / "corral"
IMAGE = HERE / "corral.elf"
MONITOR = HERE / "vmm.elf"

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-gnu-statement-expression"]
COMMON = [
    *("-target", "riscv64-freestanding-none", "-std=gnu23", *WARNINGS, "-g0", "-ffreestanding"),
    *(
        "-fno-sanitize=all",
        "-fno-stack-protector",
        "-fno-builtin",
        "-fno-pic",
        "-mcmodel=medany",
        "-mno-relax",
    ),
    *("-fno-asynchronous-unwind-tables", "-ffile-prefix-map=./="),
]
# The kernel must not touch floating-point registers: they are a process's.
KERNEL = ["-mcpu=generic_rv64+m+a+c", "-mabi=lp64", "-Os", "-I."]
USER = ["-mcpu=generic_rv64+m+a+f+d+c", "-mabi=lp64d", "-Os", "-ffunction-sections", "-fdata-sections"]
LINK = [
    "ld.lld",
    "-m",
    "elf64lriscv",
    "--gc-sections",
    "--build-id=none",
    "-z",
    "max-page-size=4096",
    "-static",
]

# What the monitor is linked with, of Corral's.
SHARED = ["fdt.c", "print.c", "sbi.c", "string.c"]

# What every user program is linked with.
LIBRARY = ["user/start.S", "user/lib.c", "string.c", "print.c"]


class BuildError(Exception):
    """The image could not be built: the message says why."""


def require_compiler() -> None:
    """Refuse another version than the one that the shipped image was built with."""
    try:
        found = metadata.version("ziglang")
    except metadata.PackageNotFoundError:
        found = "none"
    if found != ZIGLANG:
        raise BuildError(f"needs ziglang {ZIGLANG}, found {found}: pip install ziglang=={ZIGLANG}")


class Builder:
    """Compiles and links below one scratch directory."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        # Nothing in the user's environment may lead the compiler to other headers or to an old cache.
        foreign = ("ZIG_", "CPATH", "C_INCLUDE_PATH", "CCC_OVERRIDE_OPTIONS", "SOURCE_DATE_EPOCH")
        cache = str(scratch / "cache")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "ZIG_GLOBAL_CACHE_DIR": cache,
            "ZIG_LOCAL_CACHE_DIR": cache,
        }

    def zig(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "ziglang", *arguments]
        done = subprocess.run(command, cwd=SOURCE, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"ziglang {' '.join(arguments)}\n{done.stdout}{done.stderr}")

    def compile(self, source: str, options: list[str], kind: str) -> str:
        target = self.scratch / kind / (source.replace("/", "_") + ".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        self.zig("cc", *COMMON, *options, "-c", source, "-o", str(target))
        return str(target)

    def program(self, name: str, library: list[str]) -> None:
        """One user program, which programs.S includes."""
        target = self.compile(f"user/{name}.c", USER, "user")
        output = str(self.scratch / f"{name}.elf")
        # Not aligned to pages in the file and without symbols: the kernel carries it as data.
        self.zig(*LINK, "--nmagic", "--strip-all", "-T", "user/user.ld", target, *library, "-o", output)

    def kernel(self, output: Path) -> None:
        sources = sorted(
            path.relative_to(SOURCE).as_posix()
            for path in [*SOURCE.glob("*.[cS]"), *(SOURCE / "selftest").glob("*.[cS]")]
        )
        programs = sorted(path.stem for path in (SOURCE / "user").glob("*.c") if path.stem != "lib")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            library = list(pool.map(lambda source: self.compile(source, USER, "user"), LIBRARY))
            list(pool.map(lambda name: self.program(name, library), programs))
            options = [*KERNEL, f"-I{self.scratch}"]
            objects = list(pool.map(lambda source: self.compile(source, options, "kernel"), sources))
        self.zig(*LINK, "--strip-debug", "--discard-locals", "-T", "link.ld", *objects, "-o", str(output))

    def monitor(self, output: Path) -> None:
        sources = ["../vmm/entry.S", "../vmm/vmm.c", *SHARED]
        objects = [self.compile(source, KERNEL, "monitor") for source in sources]
        self.zig(*LINK, "--strip-debug", "--discard-locals", "-T", "../vmm/link.ld", *objects, "-o", str(output))


def build(output: Path, monitor: bool = False) -> None:
    """Write the image that the sources make to `output`: Corral's, or the monitor's."""
    require_compiler()
    with tempfile.TemporaryDirectory(prefix="corral-") as scratch:
        image = Path(scratch) / output.name
        builder = Builder(Path(scratch))
        if monitor:
            builder.monitor(image)
        else:
            builder.kernel(image)
        output.write_bytes(image.read_bytes())


def is_current(shipped: Path = IMAGE) -> bool:
    """Whether the shipped image is what the sources make."""
    with tempfile.TemporaryDirectory(prefix="corral-") as scratch:
        image = Path(scratch) / shipped.name
        build(image, shipped == MONITOR)
        return shipped.exists() and shipped.read_bytes() == image.read_bytes()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ringfence.guest.program.build", description="Build Corral and vmm.")
    parser.add_argument("--check", action="store_true", help="only compare the shipped images with new builds")
    options = parser.parse_args(arguments)
    try:
        for image in (IMAGE, MONITOR):
            if not options.check:
                build(image, image == MONITOR)
                print(f"{image.name}: {image.stat().st_size} bytes")
            elif not is_current(image):
                print(f"{image.name} is not what its sources make; build it again", file=sys.stderr)
                return 1
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
