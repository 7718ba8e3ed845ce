"""Search: a YAML space, Optuna's proposals, Ray Tune's trials, successive halving.

Import what you need from the modules: `space.load_search`, `tuner.run_search`.
"""
