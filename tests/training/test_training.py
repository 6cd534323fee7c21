"""Training as a whole; the oracle of its accuracy is open_clip's own zero-shot recipe on the file that it wrote."""

import io
import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.errors import ManifestError, RunDirectoryError, StaleCacheError, TrainingError
from pipeline.models.architectures import load_architecture
from pipeline.models.checkpoints import load_checkpoint
from pipeline.training.progress import training_progress
from pipeline.training.state import EpochRecord, best_epoch
from tests.training.factory import FAST, MODELS, colour_set, interrupt, run, run_for_resume, tiny_model, tokenizer

ROOT = Path(__file__).parents[2]


def zero_shot_accuracy(weights, training_set):
    """Oracle: open_clip's own zero-shot recipe, one template after the other, in evaluation mode."""
    model = tiny_model()
    model.load_state_dict(weights)
    model.eval()
    with torch.inference_mode():
        classes = []
        for name in training_set.class_names:
            texts = tokenizer()([template.format(name) for template in training_set.templates])
            features = model.encode_text(texts)
            mean = (features / features.norm(dim=-1, keepdim=True)).mean(0)
            classes.append(mean / mean.norm())
        pixels = (torch.from_numpy(training_set.val_images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        predictions = (model.encode_image(pixels) @ torch.stack(classes).T).argmax(1).numpy()
    return float((predictions == training_set.val_labels).mean())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "expert.safetensors"
    return run(output)


def test_training_beats_chance_by_far_and_keeps_the_weights_it_reports(finished):
    best = finished.curve[finished.best_epoch - 1]["val_accuracy"]["colours"]
    assert best > 0.9
    assert zero_shot_accuracy(load_file(finished.output), colour_set()) == pytest.approx(best)


def test_card_holds_provenance_in_both_files_and_seconds_only_in_json(finished):
    with safe_open(finished.output, framework="pt") as file:
        assert [*file.metadata()] == ["pipeline.card"]
        card = json.loads(file.metadata()["pipeline.card"])
    beside = json.loads(finished.output.with_suffix(".json").read_text())
    assert len(beside.pop("seconds_per_epoch")) == len(card["training"]["curve"])
    assert beside == card
    assert card["origin"] == "test"
    assert card["training"]["sets"][0]["digest"] == "digest of colours"
    assert card["training"]["settings"]["learning_rate"] == 1e-3
    assert card["training"]["inputs"]["torch"] == torch.__version__
    assert card["training"]["inputs"]["threads"] == "1"
    assert "second" not in json.dumps(card)


def test_output_loads_as_a_checkpoint_of_its_architecture(finished):
    architecture = load_architecture(str(MODELS / "tiny.json"))
    model = architecture.build()
    checkpoint = load_checkpoint(str(finished.output), architecture, model)
    assert checkpoint.publication.architecture == architecture.config
    model.load_state_dict(checkpoint.state)


def test_finished_training_is_reused_without_a_step(finished):
    before = finished.output.read_bytes()
    again = run(finished.output, progress=pytest.fail)
    assert again.up_to_date
    assert not finished.up_to_date
    assert again.card == finished.card
    assert finished.output.read_bytes() == before


def test_resume_after_kill_gives_the_bytes_of_an_undisturbed_run(tmp_path):
    killed, undisturbed = tmp_path / "killed.safetensors", tmp_path / "undisturbed.safetensors"
    code = (
        "import sys, pathlib; from tests.training import factory; factory.run_until_killed(pathlib.Path(sys.argv[1]))"
    )
    process = subprocess.run([sys.executable, "-c", code, str(killed)], cwd=ROOT, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not killed.exists()
    epochs = []
    run_for_resume(killed, epoch_done=lambda record: epochs.append(record.epoch))
    run_for_resume(undisturbed)
    assert epochs == [3, 4]
    assert killed.read_bytes() == undisturbed.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{suffix}" for name in ("killed", "undisturbed") for suffix in ("json", "safetensors")
    )


def test_early_stopping_stops_and_keeps_the_best_epoch(tmp_path):
    good = colour_set()
    misleading = replace(good, val_labels=(good.val_labels + 1) % 4)
    settings = replace(FAST, epochs=30, patience=2, learning_rate=3e-4)
    result = run(tmp_path / "x.safetensors", settings, [misleading])
    accuracies = [point["val_accuracy"]["colours"] for point in result.curve]
    assert len(accuracies) == result.best_epoch + 2 < 30
    assert accuracies[result.best_epoch - 1] == max(accuracies) > accuracies[-1]
    assert zero_shot_accuracy(load_file(result.output), misleading) == pytest.approx(max(accuracies))


def test_best_epoch_is_the_first_of_the_highest_mean():
    means = [(0.2, 0.4), (0.5, 0.5), (0.4, 0.6), (0.1, 0.1)]
    curve = [EpochRecord(index, 1.0, {"a": a, "b": b}, 0.0) for index, (a, b) in enumerate(means, start=1)]
    assert best_epoch(curve) == 2
    assert best_epoch([]) == 0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"settings": replace(FAST, learning_rate=2e-3)}, "settings.learning_rate changed (cached 0.001, now 0.002)"),
        ({"settings": replace(FAST, seed=7)}, "settings.seed changed"),
        ({"sets": [replace(colour_set(), digest="other")]}, "sets.colours.digest changed"),
        ({"sets": [replace(colour_set(), templates=["{}"])]}, "sets.colours.templates changed"),
    ],
)
def test_finished_training_with_other_inputs_is_refused_by_name(finished, change, name):
    with pytest.raises(StaleCacheError) as caught:
        run(finished.output, **change)
    assert name in str(caught.value)


def test_other_initial_weights_are_refused(finished):
    model = tiny_model()
    with torch.no_grad():
        model.logit_scale.add_(0.1)
    with pytest.raises(StaleCacheError, match="initial weights changed"):
        run(finished.output, model=model)


def test_unfinished_training_with_another_setting_is_refused_by_name(tmp_path):
    output = tmp_path / "x.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(output, progress=interrupt)
    with pytest.raises(StaleCacheError, match=r"settings.batch_size changed \(cached 32, now 16\).*\.x\.training$"):
        run(output, replace(FAST, batch_size=16))


def test_torn_state_is_refused_with_what_to_do(tmp_path):
    state = tmp_path / ".x.training" / "state.pt"
    state.parent.mkdir()
    whole = io.BytesIO()
    torch.save({"inputs": {}, "model": torch.zeros(100)}, whole)
    for content in (b"", b"torn", whole.getvalue()[:700], whole.getvalue().replace(b"PK\x03\x04", b"____")):
        state.write_bytes(content)
        with pytest.raises(StaleCacheError, match="delete it and train again"):
            run(tmp_path / "x.safetensors")


def test_second_process_on_the_same_output_is_refused(tmp_path):
    def start_another(epoch, step, steps, loss, images_per_second):
        with pytest.raises(RunDirectoryError, match="in use by process"):
            run(tmp_path / "x.safetensors", replace(FAST, epochs=1), sets=[colour_set(count=32)])

    run(tmp_path / "x.safetensors", replace(FAST, epochs=1), sets=[colour_set(count=32)], progress=start_another)


@pytest.mark.parametrize("name", ["x.safetensors", "x.json"])
def test_files_that_training_did_not_write_are_never_overwritten(tmp_path, name):
    foreign = tmp_path / name
    foreign.write_text("{}")
    with pytest.raises(StaleCacheError, match=f"{name}.*another 'output'"):
        run(tmp_path / "x.safetensors")
    assert foreign.read_text() == "{}"


def test_loss_that_is_not_finite_is_refused_with_what_to_do(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.visual.proj.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"loss became nan in epoch 1, step 1, on 'colours'; lower training.lea"):
        run(tmp_path / "x.safetensors", model=model)
    assert not (tmp_path / "x.safetensors").exists()


def test_prompt_longer_than_the_context_is_refused_not_cut(tmp_path):
    long = replace(colour_set(), templates=["a {} tile" + " again" * 30])
    with pytest.raises(ManifestError, match="longer than the model's 32 tokens"):
        run(tmp_path / "x.safetensors", sets=[long])


def test_longest_prompt_of_the_blood_cell_set_fits_the_small_model():
    name = "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)"
    open_clip.add_model_config(MODELS / "small.json")
    small = open_clip.get_tokenizer("small")
    tokens = small([f"a blood cell microscopy image of {name}."])
    assert int((tokens != 0).sum()) < small.context_length


def test_batch_norm_statistics_are_trained_and_stored(tmp_path):
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    path = tmp_path / "tiny-resnet.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    model = open_clip.create_model("tiny-resnet", pretrained=None)
    result = run(tmp_path / "x.safetensors", replace(FAST, epochs=1), [colour_set(side=32)], model)
    counter = load_file(result.output)["visual.bn1.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert counter == 6


def test_memory_maps_train_like_arrays(tmp_path, finished):
    plain = colour_set()
    np.save(tmp_path / "images.npy", plain.images)
    mapped = replace(plain, images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    result = run(tmp_path / "x.safetensors", sets=[mapped])
    assert result.output.read_bytes() == finished.output.read_bytes()


def test_settings_leave_the_callers_threads_as_they_were(tmp_path):
    before = torch.get_num_threads()
    run(tmp_path / "x.safetensors", replace(FAST, epochs=1, threads=1), [colour_set(count=32)])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_shows_rate_and_time_left(tmp_path, is_terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=140)
    with training_progress(epochs=2, console=console) as shown:
        run(
            tmp_path / "x.safetensors",
            replace(FAST, epochs=2),
            [colour_set(count=64)],
            progress=shown.step,
            epoch_done=shown.epoch_done,
        )
    text = stream.getvalue()
    assert "epoch 2/2: loss " in text
    assert "validation accuracy colours " in text
    assert "images/s, at most 00:00:00 left" in text
    assert ("\x1b" in text) == is_terminal
    if not is_terminal:
        assert len(text.splitlines()) == 2
