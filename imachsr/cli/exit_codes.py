"""Exit codes, as shells have them: 128 and the number of the signal."""

INTERRUPTED, TERMINATED = 130, 143
