"""What is shared out over the ranks by itself."""

from torch import nn

from imachsr.train.parallel import _parts


def test_members_of_lists_and_mappings_are_sharded_since_these_have_no_forward() -> None:
    inner = nn.ModuleDict({"a": nn.Conv2d(1, 1, 1), "b": nn.ModuleList([nn.ReLU(), nn.Linear(1, 1)])})
    model = nn.Module()
    model.stem, model.downs = nn.Sequential(nn.Conv2d(1, 1, 1)), nn.ModuleList([nn.Conv2d(1, 2, 1), inner])
    assert [type(part).__name__ for part in _parts(model)] == ["Sequential", "Conv2d", "Conv2d", "ReLU", "Linear"]
