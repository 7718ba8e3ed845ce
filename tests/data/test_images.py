"""The cache of decoded arrays: atomic, shared, private to write to, and never out of date."""

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from imachsr.data.cache import cache_folder
from imachsr.data.images import load_pairs
from imachsr.data.pairing import Pair, list_images, pair_folders
from imachsr.data.pictures import open_image
from imachsr.data.samples import Samples
from tests.data.files import mask, write_image, write_mask

SIZE = (40, 50)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return [(write_image(tmp_path / "i" / f"{n}.png", n), write_mask(tmp_path / "m" / f"{n}.png", mask(3, n))) for n in range(3)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(pairs: list[Pair], cache: Path, **settings: Any) -> Samples:
    return load_pairs(pairs, **{"size": SIZE, "num_classes": 3, "cache": str(cache), **settings})


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_the_cache_is_given_or_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("~/here") == tmp_path / "here"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(None) == tmp_path / "xdg" / "imachsr"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder(None) == tmp_path / ".cache" / "imachsr"


def test_a_second_load_maps_the_same_two_files(pairs: list[Pair], cache: Path) -> None:
    first = load(pairs, cache)
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(written) == 2
    second = load(pairs, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_the_order_of_the_pairs_is_kept(pairs: list[Pair], cache: Path) -> None:
    forward, backward = load(pairs, cache), load(pairs[::-1], cache)
    assert backward.names == forward.names[::-1]
    assert torch.equal(backward.images, forward.images.flip(0))


def test_writing_to_a_loaded_tensor_changes_no_other_load(pairs: list[Pair], cache: Path) -> None:
    first = load(pairs, cache)
    kept = first.images.clone(), first.labels.clone()
    first.images.zero_()
    first.labels.fill_(255)
    second = load(pairs, cache)
    assert torch.equal(second.images, kept[0])
    assert torch.equal(second.labels, kept[1])


def test_a_changed_file_is_decoded_again(pairs: list[Pair], cache: Path) -> None:
    before = load(pairs, cache)
    write_image(pairs[1][0], seed=9)
    after = load(pairs, cache)
    assert torch.equal(before.images[0], after.images[0])
    assert not torch.equal(before.images[1], after.images[1])
    assert len(entries(cache)) == 4


def test_a_changed_mask_of_equal_length_is_decoded_again(pairs: list[Pair], cache: Path) -> None:
    load(pairs, cache)
    changed = mask(3, 2)
    changed[0, 0] = (changed[0, 0] + 1) % 3
    old = pairs[2][1].stat()
    write_mask(pairs[2][1], changed)
    os.utime(pairs[2][1], ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    assert load(pairs, cache).labels[2, 0, 0] == changed[0, 0]


@pytest.mark.parametrize("settings", [{"size": (32, 32)}, {"num_classes": 4}, {"ignore": {2: 255}}])
def test_other_settings_have_arrays_of_their_own(pairs: list[Pair], cache: Path, settings: dict[str, object]) -> None:
    load(pairs, cache)
    before = entries(cache)
    load(pairs, cache, **settings)
    assert len(entries(cache) - before) == 2
    assert before <= entries(cache)


def test_labels_are_replaced_all_at_once(pairs: list[Pair], cache: Path) -> None:
    labels = load(pairs, cache, ignore={0: 1, 1: 0}).labels
    for index in range(3):
        assert labels[index].tolist() == np.array([1, 0, 2])[mask(3, index)].tolist()


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    names = ["a_2", "a_10", "a_9", "a_1", "a_100", "b_1", "a2_1", "a10_1", "1", "10", "2", "x", "a_01"]
    for name in names:
        write_image(tmp_path / "i" / f"{name}.png")
        write_mask(tmp_path / "m" / f"{name}.png", mask(3))
    expected = ["1", "2", "10", "a2_1", "a10_1", "a_01", "a_1", "a_2", "a_9", "a_10", "a_100", "b_1", "x"]
    assert list(list_images(tmp_path / "i")) == expected
    assert [image.stem for image, _ in pair_folders(tmp_path / "i", tmp_path / "m")] == expected


def test_a_mask_of_another_size_is_refused_and_both_files_named(pairs: list[Pair], cache: Path) -> None:
    write_mask(pairs[1][1], mask(3, 1, size=(50, 40)))
    with pytest.raises(ValueError, match=rf"{pairs[1][1]} must have the 40 x 50 pixels of {pairs[1][0]}, but has 50 x 40"):
        load(pairs, cache)


def test_fewer_pairs_have_arrays_of_their_own(pairs: list[Pair], cache: Path) -> None:
    load(pairs, cache)
    assert len(load(pairs[:2], cache)) == 2
    assert len(load(pairs, cache)) == 3


def test_a_lost_array_is_made_again(pairs: list[Pair], cache: Path) -> None:
    before = load(pairs, cache).labels.clone()
    next(cache.glob("*-labels.npy")).unlink()
    assert torch.equal(load(pairs, cache).labels, before)


def _load_in_child(pairs: list[Pair], cache: Path, barrier: "multiprocessing.synchronize.Barrier", queue: "multiprocessing.Queue[object]") -> None:
    barrier.wait()
    samples = load(pairs, cache)
    queue.put((samples.images.long().sum().item(), samples.labels.long().sum().item()))


def test_several_processes_at_once_read_the_same(pairs: list[Pair], cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(4), context.Queue()
    children = [context.Process(target=_load_in_child, args=(pairs, cache, barrier, queue)) for _ in range(4)]
    for child in children:
        child.start()
    found = {queue.get(timeout=60) for _ in children}
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    alone = load(pairs, cache)
    assert found == {(alone.images.long().sum().item(), alone.labels.long().sum().item())}
    assert len(entries(cache)) == 2


SLOW_WRITER = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from imachsr.data import images
    save = np.save
    def slowly(file, array):
        file.write(b"half of a file")
        file.flush()
        print("writing", flush=True)
        time.sleep(60)
    np.save = slowly
    images.load_pairs([(Path(sys.argv[1]), Path(sys.argv[2]))], size=(40, 50), num_classes=3, cache=sys.argv[3])
"""


def test_a_process_killed_while_it_writes_leaves_no_half_array(pairs: list[Pair], cache: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SLOW_WRITER), *map(str, pairs[0]), str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGKILL)
    assert not list(cache.glob("*.npy"))
    started = time.monotonic()
    assert len(load(pairs[:1], cache)) == 1
    assert time.monotonic() - started < 10, "no lock of the dead process is waited for"


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    from imachsr.data.images import load_pairs
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        load_pairs([(Path(sys.argv[1]), Path(sys.argv[2]))], size=(40, 50), num_classes=3, cache=sys.argv[3])
    except ValueError as error:
        print(error)
"""


def test_a_file_that_cannot_grow_is_told_and_leaves_nothing(pairs: list[Pair], cache: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), *map(str, pairs[0]), str(cache)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"cache folder {cache} must take 0.0 MB, but: " in said
    assert "set data.cache or XDG_CACHE_HOME to another" in said
    assert list(cache.iterdir()) == []


def test_a_cache_that_is_no_folder_is_told(pairs: list[Pair], cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(ValueError, match=rf"cache folder {cache} must take .* MB, but: .*exists.*; set data.cache or XDG_CACHE_HOME"):
        load(pairs, cache)


def test_a_broken_file_leaves_no_array(pairs: list[Pair], cache: Path) -> None:
    pairs[2][0].write_bytes(b"broken")
    with pytest.raises(ValueError, match="must be a readable image"):
        load(pairs, cache)
    assert not cache.exists() or not entries(cache)


# Broken files


@pytest.fixture
def many(tmp_path: Path) -> list[Pair]:
    """30 pairs, of which the image of 4 is cut short, the label map of 11 is missing and that of 20 holds an unknown class."""
    made = [(write_image(tmp_path / "i" / f"{n}.png", n), write_mask(tmp_path / "m" / f"{n}.png", mask(3, n))) for n in range(30)]
    made[4][0].write_bytes(made[4][0].read_bytes()[:100])
    made[11][1].unlink()
    write_mask(made[20][1], mask(3, 20) + np.uint8(9))
    return made


BROKEN = {4, 11, 20}


def test_broken_files_are_skipped_with_a_warning_that_names_and_counts_them(many: list[Pair], cache: Path) -> None:
    with pytest.warns(UserWarning, match="3 of 30 samples are skipped") as told:
        samples = load(many, cache, on_error="skip")
    said = str(told[0].message)
    assert f"{many[4][0]} must be a readable image, but: " in said
    assert f"{many[11][1]} must exist, but does not" in said
    assert f"labels of {many[20][1]} must be in 0..2" in said
    assert samples.names == tuple(str(n) for n in range(30) if n not in BROKEN)
    for position, n in enumerate(n for n in range(30) if n not in BROKEN):
        assert np.array_equal(samples.labels[position].numpy(), mask(3, n))


def test_a_second_load_says_the_same_without_decoding(many: list[Pair], cache: Path) -> None:
    with pytest.warns(UserWarning, match="3 of 30") as first:
        one = load(many, cache, on_error="skip")
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    with pytest.warns(UserWarning, match="3 of 30") as second:
        other = load(many, cache, on_error="skip")
    assert [str(each.message) for each in second] == [str(each.message) for each in first]
    assert torch.equal(one.images, other.images)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written


def test_what_is_skipped_is_still_an_error_where_errors_are_raised(many: list[Pair], cache: Path) -> None:
    with pytest.warns(UserWarning, match="3 of 30"):
        load(many, cache, on_error="skip")
    with pytest.raises(ValueError, match=f"{many[4][0]} must be a readable image"):
        load(many, cache)


def test_what_is_left_has_the_arrays_that_it_would_have_by_itself(many: list[Pair], cache: Path) -> None:
    with pytest.warns(UserWarning, match="3 of 30"):
        load(many, cache, on_error="skip")
    before = entries(cache)
    load([pair for n, pair in enumerate(many) if n not in BROKEN], cache)
    assert entries(cache) == before


def test_a_mended_file_is_used_again(many: list[Pair], cache: Path) -> None:
    with pytest.warns(UserWarning, match="3 of 30"):
        load(many, cache, on_error="skip")
    for n in BROKEN:
        write_image(many[n][0], n)
        write_mask(many[n][1], mask(3, n))
    assert len(load(many, cache, on_error="skip")) == 30


def test_more_than_a_tenth_is_not_skipped(many: list[Pair], cache: Path) -> None:
    many[7][0].unlink()
    with pytest.raises(ValueError, match=rf"at most 10% of 30 samples may be skipped, but 4 cannot be used; the first: {many[4][0]} must be"):
        load(many, cache, on_error="skip")
    assert not cache.exists()
    with pytest.raises(ValueError, match="at most 10% of 1 samples may be skipped, but 1 cannot be used"):
        load(many[4:5], cache, on_error="skip")


def test_of_several_broken_files_the_first_is_named(many: list[Pair], cache: Path) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match=f"{many[4][0]} must be a readable image"):
            load(many, cache)


def test_progress_counts_up_to_all(pairs: list[Pair], cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(pairs, cache, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    load(pairs, cache, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 3, "nothing is decoded again"


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize("fault", ["empty", "short", "other bytes", "other shape", "other type"])
def test_a_cached_array_that_is_not_whole_is_made_again_with_a_warning(pairs: list[Pair], cache: Path, part: str, fault: str) -> None:
    before = load(pairs, cache)
    kept = before.images.clone(), before.labels.clone()
    (path,) = cache.glob(f"*-{part}.npy")
    array = np.load(path)
    path.unlink()  # mapped by `before`
    if fault.startswith("other") and fault != "other bytes":
        with path.open("wb") as file:
            np.save(file, array[:2] if fault == "other shape" else array.astype(np.int16))
    else:
        whole = {"empty": b"", "short": b"\x93NUMPY\x01\x00", "other bytes": b"no array at all"}[fault]
        path.write_bytes(whole)
    with pytest.warns(UserWarning, match=rf"{path} must hold decoded uint8 .*, but: .*; the files are decoded again"):
        again = load(pairs, cache)
    assert torch.equal(again.images, kept[0])
    assert torch.equal(again.labels, kept[1])
    load(pairs, cache)  # without a warning


def test_an_array_cut_short_behind_its_header_is_made_again(pairs: list[Pair], cache: Path) -> None:
    kept = load(pairs, cache).images.clone()
    (path,) = cache.glob("*-images.npy")
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-1])
    with pytest.warns(UserWarning, match="must hold decoded uint8"):
        assert torch.equal(load(pairs, cache).images, kept)


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"x": 1}'])
def test_a_broken_note_of_what_was_skipped_is_made_again(many: list[Pair], cache: Path, content: str) -> None:
    with pytest.warns(UserWarning, match="3 of 30"):
        load(many, cache, on_error="skip")
    (note,) = cache.glob("*-skipped.json")
    whole = note.read_text()
    note.write_text(content)
    with pytest.warns(UserWarning, match="3 of 30 samples are skipped"):
        load(many, cache, on_error="skip")
    assert note.read_text() == whole


ORIENTATIONS = {  # what a file must hold to be seen as the picture
    1: lambda picture: picture,
    2: np.fliplr,
    3: lambda picture: np.rot90(picture, 2),
    4: np.flipud,
    5: lambda picture: picture.swapaxes(0, 1),
    6: np.rot90,
    7: lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
    8: lambda picture: np.rot90(picture, -1),
}


def write_turned(path: Path, picture: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](picture))).save(path, exif=exif)


@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
@pytest.mark.parametrize("part", [0, 1])
def test_images_and_labels_are_turned_as_viewers_show_them(orientation: int, part: int, pairs: list[Pair], cache: Path) -> None:
    whole = load(pairs, cache)
    path = pairs[1][part]
    write_turned(path, np.asarray(Image.open(path)), orientation)
    turned = load(pairs, cache)
    assert torch.equal(turned.images, whole.images)
    assert torch.equal(turned.labels, whole.labels)


def test_labels_that_were_made_without_the_orientation_are_told(pairs: list[Pair], cache: Path) -> None:
    image, label = pairs[1]
    write_turned(image, np.asarray(Image.open(image)), 6)
    Image.fromarray(np.rot90(np.asarray(Image.open(label)))).save(label)
    with pytest.raises(ValueError, match=rf"{label} must have the 40 x 50 pixels of {image}, but has 50 x 40; the image is turned by its EXIF"):
        load(pairs, cache)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow
def test_an_orientation_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path, random = write_image(tmp_path / "a.webp"), np.random.default_rng(3)
    picture = np.asarray(Image.open(path))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(picture).save(path, exif=exif, lossless=True)
    body, note = path.read_bytes(), exif.tobytes()[6:]
    place = body.index(note)
    shapes = set()
    for _ in range(200):
        damaged = bytearray(body)
        damaged[place + random.integers(len(note))] = random.integers(256)
        path.write_bytes(damaged)
        shapes.add(np.asarray(open_image(path)).shape[:2])
    assert shapes == {(40, 50), (50, 40)}


def test_an_image_of_too_many_pixels_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(ValueError, match=rf"{path} must have at most 0.0018 million pixels, but has more; cut it into tiles"):
        open_image(path)


SHORT_HEADER = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 5) + b"IHDR" + bytes(5) + struct.pack(">I", zlib.crc32(b"IHDR" + bytes(5)))


@pytest.mark.parametrize(("name", "body"), [("a.png", SHORT_HEADER), ("a.ppm", b"P6 4")], ids=["png", "ppm"])
def test_a_broken_header_is_told_with_its_file(name: str, body: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(ValueError, match=f"{tmp_path / name} must be a readable image, but: "):
        open_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "ppm"])
@pytest.mark.filterwarnings("ignore")
def test_no_damage_is_told_without_the_file(suffix: str, tmp_path: Path) -> None:
    path, random = write_image(tmp_path / f"a.{suffix}"), np.random.default_rng(3)
    body = path.read_bytes()
    told: list[str] = []
    for _ in range(150):
        damaged = bytearray(body[: random.integers(8, len(body))] if random.random() < 0.5 else body)
        damaged[random.integers(min(len(damaged), 100))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            open_image(path)
        except ValueError as error:
            told.append(str(error))
    assert len(told) > 20
    rules = (f"{path} must be a readable image, but: ", f"{path} must have at most ")  # a broken header may name any size
    assert all(each.startswith(rules) for each in told)
