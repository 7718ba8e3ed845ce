"""Classes of one data set in another."""

import pytest

from imachsr.data.camvid import CLASSES as CAMVID
from imachsr.data.classes import partners, plain
from imachsr.data.scenes import Scenes


@pytest.mark.parametrize(
    ("one", "other"), [("Sidewalk", "pavement"), ("traffic sign", "sign"), ("traffic_sign", "Sign-Symbol"), ("tree", "vegetation")]
)
def test_names_of_one_thing_have_one_form(one: str, other: str) -> None:
    assert plain(one) == plain(other)


@pytest.mark.parametrize(("one", "other"), [("road", "rail road"), ("sign", "traffic light"), ("car", "caravan")])
def test_other_things_stay_others(one: str, other: str) -> None:
    assert plain(one) != plain(other)


def test_a_class_finds_all_that_mean_it_and_none_is_taken_twice() -> None:
    assert partners(["tree", "road", "vegetation"], ["vegetation", "trees", "water"]) == {0: (0, 1)}
    assert partners(["a", "b"], ["c"]) == {}


def test_camvid_and_scenes_share_streets() -> None:
    scenes = Scenes().class_names
    found = partners(CAMVID, scenes)
    assert {CAMVID[own]: scenes[numbers[0]] for own, numbers in found.items()} == {
        "sky": "sky",
        "building": "building",
        "pole": "pole",
        "road": "road",
        "tree": "vegetation",
        "sign": "sign",
        "car": "car",
        "pedestrian": "pedestrian",
    }
