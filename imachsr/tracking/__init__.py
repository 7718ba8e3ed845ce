"""Where rows of metrics go while something trains."""

from imachsr.tracking.events import Combined, NullTracker, Tracker, TrialStart

__all__ = ["Combined", "NullTracker", "Tracker", "TrialStart"]
