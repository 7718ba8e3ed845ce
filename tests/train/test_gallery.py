"""The few images that every training keeps its predictions for, and the counts behind its scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.samples import Samples
from imachsr.train import checkpoint, gallery
from imachsr.train.evaluate import trained_model
from imachsr.train.gallery import BEST, LAST, SAMPLES, Gallery
from imachsr.train.loop import train
from imachsr.train.metrics import ConfusionMatrix, Reliability
from tests.train.toys import Bands, toy_run


def loaded(path: Path) -> dict[str, Any]:
    with np.load(path) as found:  # allow_pickle is off
        return {key: found[key] for key in found.files}


def test_what_is_kept_is_what_the_model_predicts_and_what_the_scores_count(tmp_path: Path) -> None:
    run = toy_run(optimizer__epochs=3, data__kwargs={"count": 24, "num_val": 6})
    found = train(run, output=tmp_path)
    samples, last, best = (loaded(tmp_path / name) for name in (SAMPLES, LAST, BEST))
    val = run.data.load("val")
    assert samples["index"].tolist() == [0, 1, 3, 4]  # evenly over six
    assert samples["class_names"].tolist() == list(run.data.class_names)
    assert samples["names"].tolist() == [val.names[index] for index in (0, 1, 3, 4)]
    np.testing.assert_array_equal(samples["images"], val.images[[0, 1, 3, 4]])
    np.testing.assert_array_equal(samples["labels"], val.labels[[0, 1, 3, 4]])
    # By the checkpoint's own model, one image at a time.
    model = trained_model(checkpoint.load(tmp_path), run)
    from imachsr.data.transforms import normalize

    with torch.no_grad():
        for place, index in enumerate((0, 1, 3, 4)):
            predicted = model(normalize(val.images[[index]])).argmax(1)[0]
            assert (predicted.numpy() == last["predicted"][place]).mean() > 0.999
    hits, pixels = np.trace(last["confusion"]), last["confusion"].sum()
    assert pixels == int((val.labels != IGNORE_INDEX).sum())
    assert 100 * hits / pixels == pytest.approx(found.metrics["val/accuracy"])
    count, confidence, right = last["reliability"]
    assert 100 * np.abs(right - confidence).sum() / count.sum() == pytest.approx(found.metrics["val/ece"])
    assert (int(last["epoch"]), float(last["score"])) == (3, found.metrics["val/miou"])
    scores = [row["val/miou"] for row in found.history]
    assert float(best["score"]) == max(scores)
    assert scores[int(best["epoch"]) - 1] == max(scores)


def test_large_images_are_thinned_out_and_labels_with_them(tmp_path: Path) -> None:
    images = torch.arange(3 * 8 * 700).reshape(1, 3, 8, 700).to(torch.uint8)
    labels = torch.arange(8 * 700).reshape(1, 8, 700).remainder(5).to(torch.uint8)
    kept = Gallery(Samples(images=images, labels=labels, names=("a",)), ("x",) * 5)
    kept.note([0], labels.long())
    kept.note_counts(ConfusionMatrix(5), Reliability())
    kept.save(tmp_path, epoch=1, score=1.0, is_best=False)
    samples, last = loaded(tmp_path / SAMPLES), loaded(tmp_path / LAST)
    assert samples["images"].shape == (1, 3, 3, 234)
    assert samples["images"].shape[-1] <= gallery.WIDTH
    np.testing.assert_array_equal(samples["labels"], labels[:, ::3, ::3])
    np.testing.assert_array_equal(last["predicted"], labels[:, ::3, ::3])
    assert not (tmp_path / BEST).exists()


def test_fewer_images_than_are_shown_are_all_shown() -> None:
    assert len(Bands().load("val")) >= 1
    samples = Bands(num_val=2).load("val")
    assert Gallery(samples, ("a", "b", "c"))._index == [0, 1]
