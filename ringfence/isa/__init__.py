"""What the RISC-V manuals say: rows, CSRs, traps, paging. Importing it fills the tables of `spec`."""

from ringfence.isa import rv64i, m, a, f, d, b, privileged, xhv, c  # noqa: F401, I001
