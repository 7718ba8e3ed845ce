"""A search as YAML: the base run, the space with its conditions, the fixed arms, and the budget."""

from imachsr.search.space.chance import draws
from imachsr.search.space.check import check, check_metric
from imachsr.search.space.constraints import Constraint
from imachsr.search.space.load import load_search, make_search, search_to_dict
from imachsr.search.space.parameters import Parameter
from imachsr.search.space.rules import Budget, Metric, Scheduler
from imachsr.search.space.sampler import Sampler
from imachsr.search.space.search import OUTPUT_ONLY, Arm, Search

__all__ = [
    "OUTPUT_ONLY",
    "Arm",
    "Budget",
    "Constraint",
    "Metric",
    "Parameter",
    "Sampler",
    "Scheduler",
    "Search",
    "check",
    "check_metric",
    "draws",
    "load_search",
    "make_search",
    "search_to_dict",
]
