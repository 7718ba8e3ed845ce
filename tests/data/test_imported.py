"""The user's own data set by import path."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from imachsr.data.imported import Imported

MODULE = '''
import torch
from imachsr.data import Samples

class Plain:
    """Not of any imachsr class: three names and a method are the contract."""
    def __init__(self, count=3, num_classes=4, class_names="abcd", label=3, gives=None, parts=None):
        if parts is not None:
            self.parts = parts
        self.num_classes, self.class_names, self.count, self.label, self.gives = num_classes, list(class_names), count, label, gives
    def load(self, split):
        if self.gives is not None:
            return self.gives
        labels = torch.zeros(self.count, 32, 32, dtype=torch.uint8)
        labels[:, 3, 4] = self.label
        labels[:, 5, 6] = 255
        return Samples(images=torch.zeros(self.count, 3, 32, 32, dtype=torch.uint8), labels=labels, names=tuple(map(str, range(self.count))))

made = 0
def counted(**settings):
    global made
    made += 1
    return Plain(**settings)

def lacking():
    return object()

ERRORS = {error.__name__: error for error in (KeyError, ValueError, AssertionError, TypeError)}

def fail(error):
    raise ERRORS[error]("images")

class BrokenLoad(Plain):
    def __init__(self, error):
        super().__init__()
        self.error = error
    def load(self, split):
        fail(self.error)

class BrokenCount(BrokenLoad):
    @property
    def num_classes(self):
        fail(self.error)
    @num_classes.setter
    def num_classes(self, value):
        pass
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside_data.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def imported(name: str = "Plain", **kwargs: object) -> Imported:
    return Imported(path=f"outside_data:{name}", kwargs=kwargs)


def test_the_users_object_is_asked(package: Path) -> None:
    data = imported(count=5)
    assert data.num_classes == 4
    assert data.class_names == ("a", "b", "c", "d")
    samples = data.load("val")
    assert len(samples) == 5
    assert samples.labels.unique().tolist() == [0, 3, 255]


def test_the_factory_is_called_once(package: Path) -> None:
    data = imported("counted")
    from outside_data import made as before  # type: ignore[import-not-found]

    for _ in range(3):
        assert data.num_classes == len(data.class_names)
        data.load("train")
    import outside_data

    assert outside_data.made == before + 1


def test_it_travels_to_another_process_by_its_path(package: Path) -> None:
    data = imported(count=2)
    assert len(pickle.loads(pickle.dumps(data)).load("train")) == 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 3}, r"`class_names` of 'outside_data:Plain' must be `num_classes` .* different names, but got 3 and \['a', 'b', 'c', 'd'\]"),
        ({"class_names": "abca"}, r"different names, but got 4 and \['a', 'b', 'c', 'a'\]"),
        ({"num_classes": 1, "class_names": "a"}, r"\(2 to 255\)"),
        ({"num_classes": "4"}, "`num_classes` of 'outside_data:Plain' must be an integer, but got '4'"),
        ({"num_classes": 4.0}, "`num_classes` of 'outside_data:Plain' must be an integer, but got 4.0"),
        ({"parts": {"a": ["x"], "e": ["y"]}}, r"`parts` of 'outside_data:Plain' must be of its classes \(a, b, c, d\), but got 'e'"),
        ({"parts": 3}, "parts of 'outside_data:Plain' must work, but: 'int' object is not iterable"),
        ({"class_names": [0, 1, 2, 3]}, r"`class_names` of 'outside_data:Plain' must be texts, but got \[0, 1, 2, 3\]"),
        ({"label": 4}, r"labels of load\('train'\) of 'outside_data:Plain' must be in 0..3 or 255 \(ignored\), but got 4"),
        ({"count": 0}, r"load\('train'\) of 'outside_data:Plain' must give at least one sample, but gave none"),
        ({"gives": [1, 2]}, r"load\('train'\) of 'outside_data:Plain' must give imachsr.data.Samples, but gave list"),
        ({"coutn": 3}, r"must take the arguments \(coutn\), but: got an unexpected keyword argument 'coutn'; its signature is \(count=3"),
    ],
)
def test_what_breaks_the_contract_is_told(package: Path, kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imported(**kwargs).load("train")


def test_an_object_that_lacks_the_contract_is_told_what(package: Path) -> None:
    with pytest.raises(ValueError, match="what 'outside_data:lacking' gives must have .* but has no num_classes, class_names, load"):
        _ = imported("lacking").num_classes


@pytest.mark.parametrize("error", ["KeyError", "ValueError", "AssertionError", "TypeError"])
@pytest.mark.parametrize(("name", "what"), [("BrokenLoad", r"load\('val'\)"), ("BrokenCount", "num_classes and class_names")])
def test_an_error_of_the_users_code_is_told_with_data_set_file_and_line(package: Path, name: str, what: str, error: str) -> None:
    line = next(number for number, text in enumerate(MODULE.splitlines(), 1) if "raise ERRORS" in text)
    with pytest.raises(ValueError, match=rf"^{what} of 'outside_data:{name}' must work, but: {error}: '?images'? \(outside_data.py:{line}\)$"):
        imported(name, error=error).load("val")


def test_samples_of_another_kind_are_told_with_their_place(package: Path) -> None:
    with pytest.raises(ValueError, match=r"load\('val'\) of 'outside_data:Plain' must work, but: TypeError: .* \(outside_data.py:14\)"):
        imported(count="3").load("val")


def test_a_missing_name_tells_the_nearest(package: Path) -> None:
    with pytest.raises(ValueError, match="'outside_data' must have 'Plian', but has not; nearest: 'Plain'"):
        imported("Plian").load("train")
