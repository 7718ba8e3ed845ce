import pytest

from imachsr.config.words import word


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "none"),
        (0.5, "0.5"),
        (True, "True"),
        ([32, 48], "[32, 48]"),
        ([], "[]"),
        (["a", {"kind": "b"}], "a+b"),
        ({"kind": "c", "k": 1}, "c (k 1)"),
        ({"kind": "by_depth", "early": "dice", "late": {"kind": "hsic", "samples": 64}}, "by_depth (early dice, late hsic (samples 64))"),
        ({"import": "mine:Loss", "t": 2}, "mine:Loss (t 2)"),
        ({"of": "data", "until": [2]}, "of data, until [2]"),
    ],
)
def test_values_in_a_word(value: object, expected: str) -> None:
    assert word(value) == expected
