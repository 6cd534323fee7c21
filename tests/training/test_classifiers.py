"""Training of image classifiers with a linear head; the oracle is plain timm with the file that training wrote."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file

from pipeline.errors import TrainingError
from pipeline.models.architectures import load_architecture
from pipeline.models.checkpoints import checkpoint_problems, load_checkpoint, read_state
from pipeline.training.loop import train
from tests.training.factory import FAST, PIXELS, colour_set, interrupt

CONFIG = {
    "architecture": "resnet10t",
    "num_classes": 4,
    "model_args": {"stem_width": 8},
    "pretrained_cfg": {"input_size": [3, 28, 28]},
}
SETTINGS = replace(FAST, epochs=3)


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    path = tmp_path_factory.mktemp("architecture") / "tiny-resnet.json"
    path.write_text(json.dumps(CONFIG))
    return load_architecture(str(path))


def run(output, architecture, sets=None, **options):
    torch.manual_seed(0)
    sets = [colour_set()] if sets is None else sets
    card = {"architecture": architecture.config}
    return train(architecture.build(), None, sets, SETTINGS, output=output, card=card, **PIXELS, **options)


@pytest.fixture(scope="module")
def finished(architecture, tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished") / "site.safetensors", architecture)


@torch.inference_mode()
def timm_accuracy(weights, training_set):
    model = timm.create_model(CONFIG["architecture"], num_classes=4, **CONFIG["model_args"]).eval()
    model.load_state_dict(weights)
    pixels = (torch.from_numpy(training_set.val_images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    return float((model(pixels).argmax(1).numpy() == training_set.val_labels).mean())


def test_a_trained_classifier_scores_in_plain_timm_as_its_card_reports(finished):
    best = finished.curve[finished.best_epoch - 1]["val_accuracy"]["colours"]
    assert best > 0.9
    assert timm_accuracy(load_file(finished.output), colour_set()) == pytest.approx(best)


def test_every_part_of_a_classifier_is_trained(finished, architecture):
    torch.manual_seed(0)
    model = architecture.build()
    before, after = model.to_published_layout(model.state_dict()), load_file(finished.output)
    assert after["bn1.num_batches_tracked"] == 6 * finished.best_epoch
    assert not [key for key, value in before.items() if torch.equal(value, after[key])]


def test_a_trained_classifier_fits_the_architecture_on_its_card(finished, architecture, tmp_path):
    path = tmp_path / "from-card.json"
    path.write_text(json.dumps(finished.card["architecture"]))
    stated = load_architecture(str(path))
    assert stated.digest == architecture.digest
    model = stated.build()
    checkpoint = load_checkpoint(str(finished.output), stated, model)
    assert checkpoint_problems("sources.models.site", checkpoint, stated, model) == []
    assert checkpoint.publication.architecture == CONFIG
    assert checkpoint.publication.quick_gelu is None


def test_training_that_starts_from_a_trained_classifier_goes_on_from_it(finished, architecture, tmp_path):
    """Loaded, trained for no gain and written again: the weights make the round trip through timm's names."""
    model = architecture.build()
    model.load_state_dict(load_checkpoint(str(finished.output), architecture, model).state)
    settings = replace(SETTINGS, epochs=1, learning_rate=1e-12, weight_decay=0)
    card = {"architecture": architecture.config}
    result = train(model, None, [colour_set()], settings, output=tmp_path / "x.safetensors", card=card, **PIXELS)
    first, second = read_state(finished.output), read_state(result.output)
    assert first.keys() == second.keys()
    torch.testing.assert_close(second["fc.weight"], first["fc.weight"], rtol=0, atol=1e-8)
    assert torch.equal(second["bn1.num_batches_tracked"], first["bn1.num_batches_tracked"] + 6)


def test_resume_after_an_interruption_gives_the_bytes_of_an_undisturbed_run(finished, architecture, tmp_path):
    output = tmp_path / "site.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(output, architecture, progress=interrupt)
    epochs = []
    run(output, architecture, epoch_done=lambda record: epochs.append(record.epoch))
    assert epochs == [2, 3]
    assert output.read_bytes() == finished.output.read_bytes()


def test_sets_of_other_classes_are_refused_before_anything_is_written(architecture, tmp_path):
    names = ("red", "green", "blue")
    cases = [
        ([colour_set(names=names)], r"colours: has 3 classes, but the classifier's head has 4"),
        (
            [colour_set(), colour_set("others", names=("green", "red", "blue", "grey"))],
            r"others: its classes are \['green', 'red', .* those of colours are \['red', 'green', .*; a linear head",
        ),
    ]
    for sets, said in cases:
        with pytest.raises(TrainingError, match=said):
            run(tmp_path / "x.safetensors", architecture, sets)
    assert [*tmp_path.iterdir()] == []
