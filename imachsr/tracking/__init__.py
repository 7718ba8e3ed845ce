"""Where rows of metrics go while something trains."""

from imachsr.tracking.events import Combined, ConsoleTracker, JsonLinesTracker, NullTracker, Tracker, TrialStart

__all__ = ["Combined", "ConsoleTracker", "JsonLinesTracker", "NullTracker", "Tracker", "TrialStart"]
