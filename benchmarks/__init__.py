"""Speed, beside QEMU in the same run: `python -m benchmarks`."""
