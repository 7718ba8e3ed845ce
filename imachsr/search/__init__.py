"""Search: a YAML space, Optuna's proposals, Ray Tune's trials, successive halving.

Import what you need from the modules: `space.load_search`, `tuner.run_search`. The package can be called, as `imachsr.search(space, train_fn)`: see
:func:`imachsr.search.function.search_function`.
"""

import sys

from imachsr.search.package import Package

sys.modules[__name__].__class__ = Package
