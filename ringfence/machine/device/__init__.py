"""The chips: one per file. A chip knows offsets, its interrupt line and its back end; no address, no controller."""
