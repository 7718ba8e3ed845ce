"""From YAML to checked settings, and from settings to objects."""

from imachsr.config.load import load_run, run_to_dict
from imachsr.config.schema import ConfigError, Run

__all__ = ["ConfigError", "Run", "load_run", "run_to_dict"]
