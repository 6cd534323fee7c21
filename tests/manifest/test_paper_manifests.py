"""The paper's study in ``manifests/paper``: complete, consistent, and checked by ``validate`` without a network."""

import socket
from itertools import product
from pathlib import Path
from typing import Any

import huggingface_hub
import jsonschema
import medmnist
import open_clip
import pytest
import yaml

from pipeline.archives.severities import FOLDS, MEDMNIST_C
from pipeline.drivers.downloads import NOT_YET
from pipeline.drivers.validate import InvalidManifestError, validate
from pipeline.errors import ProblemsError
from pipeline.manifest import Manifest, load_manifest, manifest_schema
from pipeline.manifest.images import CorruptSource, MedIMetaSource, MedMNISTCSource, MedMNISTSource
from pipeline.models.architectures import tokenize_prompts
from pipeline.models.class_embeddings import fill_templates
from pipeline.references import HUB_PREFIX

FOLDER = Path(__file__).parents[2] / "manifests" / "paper"
IN_DOMAIN = {
    "cell-microscopy": "bloodmnist",
    "breast": "breastmnist",
    "fundoscopy": "retinamnist",
    "oct": "octmnist",
}
NOVEL = {"cell-microscopy": {"pbc"}, "breast": {"mammo_mass", "mammo_calc"}, "fundoscopy": {"fundus"}, "oct": {"oct"}}
BACKBONES = ["vit-b-16", "vit-l-14", "rn50", "biomedclip"]
STUDIES = [f"{modality}-{backbone}" for modality, backbone in product(IN_DOMAIN, BACKBONES)]
ALL = pytest.mark.parametrize("study", STUDIES)


@pytest.fixture(autouse=True)
def _empty_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_DATA_ROOT", str(tmp_path))


def load(study: str) -> Manifest:
    return load_manifest(FOLDER / f"{study}.yaml")


def modality(study: str) -> str:
    return next(name for name in IN_DOMAIN if study.startswith(name))


def only_source(item: Any) -> Any:
    (source,) = item.source
    return source


def test_there_is_a_manifest_for_every_modality_and_backbone() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(STUDIES)
    loaded = [load(study) for study in STUDIES]
    assert [manifest.name for manifest in loaded] == STUDIES
    assert len({manifest.output for manifest in loaded}) == len({manifest.pair.expert for manifest in loaded}) == 16  # type: ignore[union-attr]
    assert len({manifest.archives for manifest in loaded}) == 1


@ALL
def test_the_schema_accepts_it(study: str) -> None:
    content = yaml.safe_load((FOLDER / f"{study}.yaml").read_text(encoding="utf-8"))
    assert list(jsonschema.Draft202012Validator(manifest_schema()).iter_errors(content)) == []


@ALL
def test_all_four_conditions_are_there_and_corruptions_name_their_clean_set(study: str) -> None:
    manifest, flag = load(study), IN_DOMAIN[modality(study)]
    by_condition: dict[str, list[Any]] = {}
    for item in manifest.evaluation_sets:
        by_condition.setdefault(item.condition, []).append(item)
    assert set(by_condition) == {"in-domain", "base-to-novel", "noise", "digital"}
    (clean,) = by_condition["in-domain"]
    assert (only_source(clean).flag, only_source(clean).split) == (flag, "test")
    for item in [*by_condition["noise"], *by_condition["digital"]]:
        assert item.clean == clean.name
        assert item.class_names == clean.class_names
        source = only_source(item)
        if isinstance(source, MedMNISTCSource):
            (fold,) = source.folds or []
            assert (source.dataset, fold) == (flag, item.condition)
            assert set(FOLDS[fold]) & set(MEDMNIST_C[flag]), "MedMNIST-C has this fold for this set"
        else:
            assert isinstance(source, CorruptSource)
            assert source.of == only_source(clean)
            assert not set(FOLDS[item.condition]) & set(MEDMNIST_C[flag]), "only where MedMNIST-C has none"
    novel = [only_source(item) for item in by_condition["base-to-novel"]]
    assert {source.dataset for source in novel} == NOVEL[modality(study)]
    assert all(isinstance(source, MedIMetaSource) and source.split == "test" for source in novel)
    assert all(item.class_names is None for item in by_condition["base-to-novel"]), "named by the set's own metadata"


@ALL
def test_the_expert_is_trained_by_the_papers_recipe_on_the_in_domain_set(study: str) -> None:
    manifest = load(study)
    clean = manifest.evaluation_sets[0]
    section = manifest.finetune["expert"]
    assert (section.init, section.learning_rate, section.schedule) == ("generalist", 1e-5, "constant")
    assert (section.epochs, section.batch_size, section.patience) == (50, 32, 5)
    for items, split in ((section.train, "train"), (section.validation, "val")):
        (item,) = items
        source = only_source(item)
        assert isinstance(source, MedMNISTSource)
        assert (source.flag, source.size, source.split) == (only_source(clean).flag, only_source(clean).size, split)
        assert item.class_names == clean.class_names


@ALL
def test_classes_are_named_in_medmnists_order_and_prompts_fit_the_context(study: str) -> None:
    manifest = load(study)
    names = manifest.evaluation_sets[0].class_names
    assert names is not None
    published = [*medmnist.INFO[IN_DOMAIN[modality(study)]]["label"].values()]
    assert len(names) == len(published)
    if published[0] != "0":  # RetinaMNIST has numbers only
        pairs = zip(names, published, strict=True)
        assert all(ours.split()[0].lower() == theirs.split()[0].strip(",") for ours, theirs in pairs)
    tokens = tokenize_prompts(open_clip.SimpleTokenizer(), fill_templates(names, manifest.prompts.templates))
    assert len(tokens) == len(names)


@ALL
def test_openais_weights_meet_the_activation_that_they_were_trained_with(study: str) -> None:
    manifest = load(study)
    if manifest.architecture.startswith(HUB_PREFIX):
        assert manifest.checkpoints["generalist"] == manifest.architecture
        return
    tag = open_clip.get_pretrained_cfg(manifest.architecture, manifest.checkpoints["generalist"])
    assert open_clip.get_model_config(manifest.architecture)["quick_gelu"] is tag["quick_gelu"] is True


def test_validate_names_everything_that_is_absent_and_asks_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(tmp_path, monkeypatch)
    with pytest.raises(InvalidManifestError) as caught:
        validate(load("breast-rn50"))
    assert sorted(line.split(":")[0] for line in caught.value.problems) == [
        "evaluation set 'breastmnist-digital'",
        "evaluation set 'breastmnist-noise'",
        "evaluation set 'mammo-calc'",
        "evaluation set 'mammo-mass'",
    ]
    awaited = caught.value.awaited
    assert all(NOT_YET in line for line in awaited)
    assert sorted(line.split(":")[0] for line in awaited) == [
        "breastmnist",
        "pair.generalist",
        "training breastmnist",
        "validation breastmnist",
    ]
    lines = "\n".join([*caught.value.problems, *awaited])
    assert "fetch mammo_mass from https://doi.org/10.5281/zenodo.7884735" in lines
    assert "MedMNIST-C (https://zenodo.org/records/11471504)" in lines
    assert "openai: not there yet, fetched at first use: weights from the Hugging Face hub (timm/resnet50_clip" in lines
    assert f"breastmnist_224.npz from {medmnist.INFO['breastmnist']['url_224']}" in lines


def test_validate_says_where_biomedclip_comes_from_and_checks_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(tmp_path, monkeypatch)
    manifest = load("oct-biomedclip")
    kept = manifest.model_copy(update={"evaluation_sets": manifest.evaluation_sets[:1]})
    reference = manifest.architecture
    repository = reference.removeprefix(HUB_PREFIX)
    lines = validate(kept)
    assert lines[:2] == [
        f"pair: {reference}: {NOT_YET} architecture from the Hugging Face hub ({repository})",
        f"pair.generalist: {reference}: {NOT_YET} weights from the Hugging Face hub ({repository})",
    ]
    assert lines[2].startswith("methods: generalist, expert")
    assert [line.split(":")[0] for line in lines[3:]] == ["octmnist", "training octmnist", "validation octmnist"]


def test_a_prompt_is_checked_before_its_images_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(tmp_path, monkeypatch)
    manifest = load("oct-rn50")
    prompts = manifest.prompts.model_copy(update={"templates": ["retina " * 80 + "{}"]})
    update = {"prompts": prompts, "evaluation_sets": manifest.evaluation_sets[:1]}
    with pytest.raises(ProblemsError, match="is longer than the model's 77 tokens"):
        validate(manifest.model_copy(update=update))


def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty hub cache, and a test that fails as soon as anything connects."""

    def refuse(*_: object) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
