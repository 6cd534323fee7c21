"""Settings and sets that cannot be trained with are refused by name; the learning rate follows its schedule."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import TrainingError
from pipeline.training.loop import learning_rate_at
from tests.training.factory import FAST, colour_set


def test_learning_rate_warms_up_then_follows_the_schedule():
    constant = replace(FAST, learning_rate=1.0, warmup_steps=4)
    assert [learning_rate_at(step, 100, constant) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = replace(constant, schedule="cosine")
    assert learning_rate_at(4, 100, cosine) == 1.0
    assert learning_rate_at(52, 100, cosine) == pytest.approx(0.5)
    assert learning_rate_at(100, 100, cosine) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "training.epochs must be >= 1, got 0"),
        ({"learning_rate": math.nan}, "training.learning_rate must be > 0, got nan"),
        ({"schedule": "linear"}, "training.schedule must be 'constant' or 'cosine', got 'linear'"),
        ({"threads": 0}, "training.threads must be >= 1 or null, got 0"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, message):
    with pytest.raises(TrainingError, match=message):
        replace(FAST, **change)


def test_data_that_cannot_be_trained_on_is_refused_by_set():
    good = colour_set()
    with pytest.raises(TrainingError, match=r"colours: training images must be uint8 \[N, H, W, 3\]"):
        replace(good, images=good.images.astype(np.float32))
    with pytest.raises(TrainingError, match=r"colours: training labels must lie in \[0, 4\)"):
        replace(good, labels=good.labels + 1)
    with pytest.raises(TrainingError, match="one label per image"):
        replace(good, val_labels=good.val_labels[:-1])
    with pytest.raises(TrainingError, match=r"must contain \{\}"):
        replace(good, templates=["a tile"])
