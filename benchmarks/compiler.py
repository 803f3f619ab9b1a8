"""GCC's own compiler proper for the measured Debian, from Debian's packages, and a program for it to compile."""

from __future__ import annotations

import re

from ringfence.guest import catalog, cpio, deb
from ringfence.guest.archive import Index, find_release
from ringfence.guest.mirror import keyring, mirrors
from ringfence.machine.engine.code import cache_directory

PACKAGES = (
    "cpp-14-riscv64-linux-gnu",
    "libc6",
    *("libmpc3", "libmpfr6", "libgmp10", "libisl23", "zlib1g", "libzstd1"),
)
_WANTED = re.compile(
    r"/cc1$|/(ld-linux-riscv64-lp64d|libc|libm|libmpc|libmpfr|libgmp|libisl|libz|libzstd)\.so\.[\d.]+$"
)
COMMAND = "cc1 -quiet -fpreprocessed -O1 -o /dev/null /program.c"


def compiler(functions: int) -> cpio.Archive:
    """For a first file system: /bin/cc1 with its libraries, and program.c of so many functions. What is fetched is kept
    in the user's cache. Raises MirrorError.
    """
    directory = cache_directory() / "benchmarks" / "packages"
    directory.mkdir(parents=True, exist_ok=True)
    debian = catalog.system("debian")
    index = Index(find_release(mirrors(), debian.suite, keyring()), debian.component, debian.architecture, directory)
    archive = cpio.Archive()
    for name in PACKAGES:
        for path, data in deb.files(index.fetch(index.package(name)), lambda path: bool(_WANTED.search(path))).items():
            file = path.rpartition("/")[2]
            place = "bin" if file == "cc1" else "lib" if file.startswith("ld-") else "lib/riscv64-linux-gnu"
            archive.file(f"{place}/{file}", data, 0o755)
            soname = re.match(r".*\.so\.\d+", file)
            if soname and soname[0] != file:
                archive.symlink(f"{place}/{soname[0]}", file)
    archive.file("program.c", source(functions).encode())
    return archive


def source(functions: int) -> str:
    """Sorting, searching and arithmetic, each function a little different."""
    return "\n".join(
        f"""static int table{n}[{n % 61 + 3}];
long work{n}(long *at, int count, unsigned seed) {{
    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && at[j - 1] > at[j]; j--) {{ long kept = at[j]; at[j] = at[j - 1]; at[j - 1] = kept; }}
    int low = 0, high = count;
    while (low < high) {{ int middle = (low + high) / 2; if (at[middle] < {n}) low = middle + 1; else high = middle; }}
    for (int i = 0; i < {n % 61 + 3}; i++) {{ seed = seed * {2 * n + 1}u + {n}u; table{n}[i] += seed >> {n % 31}; }}
    switch (seed & 7) {{ case 0: return low; case 1: return at[low] + {n}; case 5: return table{n}[low % 3]; }}
    return low ? seed / low : -{n};
}}"""
        for n in range(functions)
    )
