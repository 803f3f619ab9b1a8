"""For Python in the guest: the motion of five bodies, and counting of words."""

from __future__ import annotations

import sys

STEPS, ROUNDS = 6_000, 12
DAY, SUN = 0.01, 39.47841760435743


class Body:
    def __init__(self, n: int) -> None:
        self.at = [n * 1.5, n * n * 0.3, -0.2 * n]
        self.velocity = [0.3 * n, 1.0 - 0.4 * n, 0.1 * n]
        self.mass = SUN / (1 + 900 * n)


bodies = [Body(n) for n in range(5)]
pairs = [(one, other) for n, one in enumerate(bodies) for other in bodies[n + 1 :]]
for _ in range(STEPS):
    for one, other in pairs:
        x, y, z = one.at[0] - other.at[0], one.at[1] - other.at[1], one.at[2] - other.at[2]
        pull = DAY * (x * x + y * y + z * z) ** -1.5
        for axis, distance in enumerate((x, y, z)):
            one.velocity[axis] -= distance * other.mass * pull
            other.velocity[axis] += distance * one.mass * pull
    for body in bodies:
        for axis in range(3):
            body.at[axis] += DAY * body.velocity[axis]
words = [f"w{n * 7919 % 4099}" for n in range(20_000)]
counts: dict[str, int] = {}
for _ in range(ROUNDS):
    for word in words:
        counts[word] = counts.get(word, 0) + 1
most = sorted(counts, key=lambda word: (-counts[word], word))
sys.stdout.write(f"{bodies[0].at[0]:.6f} {most[0]}\n")
