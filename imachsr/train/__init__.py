"""One training loop, used by a plain process, by Ray Train workers and by Ray Tune trials."""
