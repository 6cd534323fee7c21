"""Sets of coloured tiles that a tiny model learns in seconds, and its training on them."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch

from pipeline.training.loop import train
from pipeline.training.settings import TrainingSet, TrainingSettings

MODELS = Path(__file__).parents[2] / "pipeline" / "demo"
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200), "grey": (130, 130, 130)}
FAST = TrainingSettings(epochs=3, learning_rate=1e-3, threads=1, patience=3)
PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def tiny_model(**options):
    open_clip.add_model_config(MODELS / "tiny.json")
    torch.manual_seed(0)
    return open_clip.create_model("tiny", pretrained=None, **options)


def tokenizer():
    open_clip.add_model_config(MODELS / "tiny.json")
    return open_clip.get_tokenizer("tiny")


def draw(count, seed, names, side=28):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(names), count)
    noise = generator.normal(0, 40, (count, side, side, 3))
    centres = np.array([COLOURS[name] for name in names])[labels][:, None, None]
    return (centres + noise).clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def colour_set(name="colours", count=192, names=("red", "green", "blue", "grey"), side=28):
    images, labels = draw(count, 1, names, side)
    val_images, val_labels = draw(48, 2, names, side)
    return TrainingSet(name, names, ["a {} tile.", "{}"], images, labels, val_images, val_labels, f"digest of {name}")


def run(output, settings=FAST, sets=None, model=None, **options):
    card = {"architecture": json.loads((MODELS / "tiny.json").read_text()), "origin": "test"}
    sets = [colour_set()] if sets is None else sets
    model = tiny_model() if model is None else model
    return train(model, tokenizer(), sets, settings, output=output, card=card, **PIXELS, **options)


def run_until_killed(output):
    """Train as the resume test does, and die by SIGKILL in the middle of the third epoch."""

    def kill(epoch, step, steps, loss, images_per_second):
        if (epoch, step) == (3, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    run_for_resume(output, progress=kill)


def run_for_resume(output, **options):
    sets = [colour_set("colours", 96), colour_set("pair", 64, ("blue", "red"))]
    settings = replace(FAST, epochs=4, schedule="cosine", warmup_steps=3)
    return run(output, settings, sets, tiny_model(force_patch_dropout=0.25), **options)


def interrupt(epoch, step, steps, loss, images_per_second):
    if epoch == 2:
        raise KeyboardInterrupt
