"""A study as its user writes it: arms, cells, seeds, and what is compared with what."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from imachsr.config.load import make_run, merge, nested, resolve
from imachsr.config.schema import Run
from imachsr.config.training import Settings
from imachsr.data.corruptions import CORRUPTIONS, SEVERITIES
from imachsr.search.space.rules import is_higher_better
from imachsr.search.space.search import Arm

Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]


class Cell(Settings):
    """A network on data with a budget, in which arms are compared.

    Attributes:
        name: Shown in tables.
        set_: ``set:`` dotted keys and values over the base run, for every arm: the network, its learning rate, a share of the labels.
        arms: Names of the arms that run here, the control among them; null: all.
        of_arm: Further settings of an arm, here only: what a search found for this network.
        seeds: Of this cell; null: the study's.
        equal: What is equal between the arms: epochs; or time, where each arm has the epochs that fit into the time of the control's, by the median
            times of a step that were measured in the cell ``like``.
        like: With ``equal: time``, the cell that this one is otherwise the same as.
        family: Name of the question that this cell helps to answer: Holm's adjustment is over the comparisons of each family by itself.
    """

    name: str = Field(min_length=1)
    set_: dict[str, Any] = Field({}, alias="set")
    arms: tuple[str, ...] | None = None
    of_arm: dict[str, dict[str, Any]] = {}
    seeds: Seeds | None = None
    equal: Literal["epochs", "time"] = "epochs"
    like: str | None = None
    family: str = Field("all", min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Cell":
        if (self.equal == "time") != (self.like is not None):
            raise ValueError("`like` must name the cell whose times are taken with `equal: time`, and only with it")
        if self.equal == "time" and (self.set_ or self.of_arm):
            raise ValueError("`set` and `of_arm` must be left out with `equal: time`: they are those of the cell that `like` names")
        return self


class Primary(Settings):
    """The one comparison that was declared before anything ran: an arm against the control. It stands outside of Holm's families.

    Attributes:
        cell: Name of a cell.
        arm: Name of an arm other than the control.
    """

    cell: str
    arm: str


class Effect(Settings):
    """What one setting of an arm does, all else equal: explored, not tested.

    Attributes:
        cell: Where.
        arm: Whose setting.
        key: Dotted key of the setting.
        values: That it takes.
        seeds: Of each.
    """

    cell: str
    arm: str
    key: str
    values: tuple[Any, ...] = Field(min_length=1)
    seeds: Seeds


class Chart(Settings):
    """The gain over a setting that differs between cells.

    Attributes:
        over: Dotted key of the setting, a number, such as subset.share or optimizer.epochs.
        cells: That are drawn, at least two.
    """

    over: str
    cells: tuple[str, ...] = Field(min_length=2)


class AgainstItself(Settings):
    """The control against itself with other seeds: how often the test finds a difference where there is none.

    Attributes:
        cell: Where.
        seeds: As many as the cell has, and none of these.
    """

    cell: str
    seeds: Seeds


class Corruptions(Settings):
    """Scoring on spoilt images, once at the end of every run.

    Attributes:
        names: Of the corruptions; null: all.
        severities: Each in 1..5.
    """

    names: tuple[str, ...] | None = None
    severities: tuple[int, ...] = SEVERITIES

    @model_validator(mode="after")
    def _check(self) -> "Corruptions":
        for what, given, known in (("names", self.names, tuple(CORRUPTIONS)), ("severities", self.severities, SEVERITIES)):
            if given is not None and (not given or len(set(given)) < len(given) or not set(given) <= set(known)):
                raise ValueError(f"`{what}` must be among {', '.join(map(str, known))}, each once, but got {list(given)}")
        return self


class StudyBudget(Settings):
    """What runs take.

    Attributes:
        concurrency: Runs at a time, >= 1; auto: as many as the cluster holds.
        cpus_per_run: Of each, >= 1.
        gpus_per_run: Of each, >= 0, may be a fraction; with 0 runs use the CPU.
    """

    concurrency: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    cpus_per_run: int = Field(1, ge=1)
    gpus_per_run: float = Field(0.0, ge=0)


class StudyPlan(Settings):
    """A whole study, checked.

    Attributes:
        name: Shown to people.
        run: The base run's settings, over the defaults.
        arms: What is compared; the first is the control that the others are compared with.
        cells: Where; every arm runs in every cell with every seed unless the cell says less.
        seeds: Paired: with the same seed, arms start from the same weights and see the data in the same order.
        primary: The comparison that was declared beforehand.
        contrasts: Further pairs of arms that are compared in every cell that has both, [arm, other].
        effects: Settings of an arm that are varied one at a time.
        charts: Gains over a setting.
        against_itself: The control against itself.
        metric: That is tested, of the last epoch: a key of the rows; higher is better unless it is ece, nll or loss.
        corruptions: Scoring on spoilt images; null: none.
        also_on: Other data that every trained model is scored on at the end: names, and dotted settings (``shifted: {data.domain: shifted}``);
            null: none.
        budget: What runs take.
    """

    name: str = Field("study", min_length=1)
    run: dict[str, Any] = {}
    arms: tuple[Arm, ...] = Field(min_length=2)
    cells: tuple[Cell, ...] = (Cell.model_validate({"name": "all"}),)
    seeds: Seeds
    primary: Primary | None = None
    contrasts: tuple[tuple[str, str], ...] = ()
    effects: tuple[Effect, ...] = ()
    charts: tuple[Chart, ...] = ()
    against_itself: AgainstItself | None = None
    metric: str = "val/miou"
    corruptions: Corruptions | None = None
    also_on: Annotated[dict[str, dict[str, Any]], BeforeValidator(lambda given: {} if given is None else given)] = {}
    budget: StudyBudget = StudyBudget()

    @property
    def control(self) -> str:
        """Name of the arm that the others are compared with."""
        return self.arms[0].name

    @property
    def is_higher_better(self) -> bool:
        """Whether more of the metric is better."""
        return is_higher_better(self.metric)

    def cell(self, name: str) -> Cell:
        """The cell of a name."""
        return next(cell for cell in self.cells if cell.name == name)

    def arms_of(self, cell: Cell) -> tuple[str, ...]:
        """Names of the arms that run in a cell, the control first."""
        like = self.cell(cell.like) if cell.like is not None else cell
        wanted = cell.arms or like.arms
        return tuple(arm.name for arm in self.arms if wanted is None or arm.name in wanted)

    def seeds_of(self, cell: Cell) -> tuple[int, ...]:
        """Seeds of a cell."""
        like = self.cell(cell.like) if cell.like is not None else cell
        return cell.seeds or like.seeds or self.seeds

    def run_of(self, cell: Cell, arm: str, seed: int, further: Mapping[str, Any] | None = None) -> Run:
        """The run of an arm in a cell, as it is before times are made equal.

        Args:
            cell: Where.
            arm: Name of the arm.
            seed: Of the run.
            further: Dotted settings over all of these.

        Raises:
            ConfigError: If they do not fit together.
        """
        like = self.cell(cell.like) if cell.like is not None else cell
        own = next(each for each in self.arms if each.name == arm)
        name = f"{cell.name}-{arm}-{seed}"
        return self.laid(like.set_, own.set_, like.of_arm.get(arm, {}), further or {}, {"name": name, "seed": seed})

    def laid(self, *layers: Mapping[str, Any]) -> Run:
        """The base run with dotted settings over it, one layer after the other: an arm may change the kind of what its cell sets.

        Raises:
            ConfigError: If they do not fit together.
        """
        raw: Any = resolve(self.run)
        for layer in layers:
            for part in nested(layer):
                raw = merge(raw, part)
        return make_run(raw)
