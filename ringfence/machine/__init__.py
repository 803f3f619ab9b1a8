"""Bare metal: a computer with nothing beneath it."""
