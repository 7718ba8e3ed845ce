"""Classes of one data set in another."""

import pytest

from imachsr.data.camvid import CLASSES as CAMVID
from imachsr.data.camvid import CamVid
from imachsr.data.cityscapes import Cityscapes
from imachsr.data.classes import Common, partners, parts_of, plain
from imachsr.data.scenes import Scenes


@pytest.mark.parametrize(
    ("one", "other"), [("Sidewalk", "pavement"), ("traffic sign", "sign"), ("traffic_sign", "Sign-Symbol"), ("tree", "vegetation")]
)
def test_names_of_one_thing_have_one_form(one: str, other: str) -> None:
    assert plain(one) == plain(other)


@pytest.mark.parametrize(("one", "other"), [("road", "rail road"), ("sign", "traffic light"), ("car", "caravan")])
def test_other_things_stay_others(one: str, other: str) -> None:
    assert plain(one) != plain(other)


def test_a_class_finds_all_that_mean_it_on_both_sides() -> None:
    assert partners(["tree", "road", "vegetation"], ["vegetation", "trees", "water"]) == [Common("tree", (0, 2), (0, 1))]
    assert partners(["a", "b"], ["c"]) == []


def test_parts_count_as_their_whole_where_only_one_side_has_them() -> None:
    parts = {"car": ("truck", "bus"), "bicyclist": ("bicycle",)}
    fine, coarse = ["bus", "car", "rider", "bicycle", "truck", "sky"], ["sky", "cars", "bicyclist"]
    found = partners(fine, coarse, other_parts=parts)
    assert found == [Common("car", (0, 1, 4), (1,)), Common("rider", (2, 3), (2,)), Common("sky", (5,), (0,))]
    # The other way round, of a model that knows the wholes, it is the data's labels that are taken together.
    assert [(each.own, each.other) for each in partners(coarse, fine, own_parts=parts)] == [((0,), (5,)), ((1,), (0, 1, 4)), ((2,), (2, 3))]
    # What both tell apart stays apart.
    assert partners(["car", "truck"], ["truck", "car"], other_parts=parts) == [Common("car", (0,), (1,)), Common("truck", (1,), (0,))]
    # A whole that one side has in parts only.
    assert partners(["bus", "truck"], ["car"], other_parts=parts) == [Common("car", (0, 1), (0,))]


def test_cityscapes_and_camvid_share_what_camvid_puts_in_one() -> None:
    city, camvid = Cityscapes(root="x"), CamVid(root="x")
    there = partners(city.class_names, camvid.class_names, other_parts=parts_of(camvid))
    assert {each.name: [city.class_names[index] for index in each.own] for each in there if len(each.own) > 1} == {
        "building": ["building", "wall"],
        "traffic sign": ["traffic light", "traffic sign"],
        "rider": ["rider", "motorcycle", "bicycle"],
        "car": ["car", "truck", "bus", "train"],
    }
    assert sorted(index for each in there for index in each.other) == list(range(11))  # each class of CamVid is scored
    back = partners(camvid.class_names, city.class_names, own_parts=parts_of(camvid))
    assert {(each.own, each.other) for each in back} == {(each.other, each.own) for each in there}
    assert parts_of(city) == {}


def test_camvid_and_scenes_share_streets() -> None:
    scenes = Scenes().class_names
    found = partners(CAMVID, scenes)
    assert {CAMVID[each.own[0]]: scenes[each.other[0]] for each in found} == {
        "sky": "sky",
        "building": "building",
        "pole": "pole",
        "road": "road",
        "tree": "vegetation",
        "sign": "sign",
        "car": "car",
        "pedestrian": "pedestrian",
    }
