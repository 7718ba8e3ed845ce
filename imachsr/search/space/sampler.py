"""What proposes configurations."""

from typing import Literal

from pydantic import Field

from imachsr.search.space.conditions import Part


class Sampler(Part):
    """What proposes.

    Attributes:
        kind: tpe (multivariate, grouped by branches), gp (Gaussian process), cmaes, nsga2 (for several objectives), grid, random, or auto
            (OptunaHub's AutoSampler, where optunahub is installed).
        startup_trials: Random proposals before a model proposes, >= 1; not of grid, random and nsga2.
        population: Of cmaes and nsga2, >= 5; null: what they choose.
        control: Share of the sampled trials that are drawn at random, in [0, 1), to tell whether the model is worth anything.
        seed: Of the proposals, >= 0.
    """

    kind: Literal["tpe", "gp", "cmaes", "nsga2", "grid", "random", "auto"] = "tpe"
    startup_trials: int = Field(4, ge=1)
    population: int | None = Field(None, ge=5)
    control: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0)

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Settings that this kind does not read."""
        return {
            "tpe": ("population",),
            "gp": ("population",),
            "cmaes": (),
            "nsga2": ("startup_trials",),
            "grid": ("startup_trials", "population", "control"),
            "random": ("startup_trials", "population", "control"),
            "auto": ("startup_trials", "population"),
        }[self.kind]
