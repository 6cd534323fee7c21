"""A model of BiomedCLIP's kind at a size that costs milliseconds: timm ViT, BERT with a WordPiece tokenizer, MLP head.

Everything is made here, by transformers and timm, without a network. The folder is laid out as the hub repositories
are: open_clip's configuration names the text tower, whose folder has ``config.json`` and ``vocab.txt`` but no weights.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from transformers import BertConfig

from tests.models.factory import State, perturbed

CONTEXT = 16
PIXELS = 224
CLASS_NAMES = ("benign tissue", "malignant tumour", "normal")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "a medical image of the . , tissue normal benign malignant tumour cell blood red white ##s"
VOCABULARY = [*SPECIAL, *WORDS.split()]
# As the hub's open_clip_config.json has it, but for names, sizes and the context.
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": PIXELS,
    },
    "text_cfg": {
        "hf_model_name": "text",
        "hf_tokenizer_name": "text",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": CONTEXT,
    },
}
# What the hub's file has beside the weights of today's transformers: an index that older ones stored as a buffer.
POSITION_IDS = "text.transformer.embeddings.position_ids"


def make_repository(folder: Path, **bert: Any) -> Path:
    """Write the tower's folder ``text`` and ``open_clip_config.json``; ``bert`` are settings of its BERT."""
    text = folder / "text"
    text.mkdir(parents=True)
    (text / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    settings: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
    }
    BertConfig(vocab_size=len(VOCABULARY), **(settings | bert)).save_pretrained(text)
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3]}}), encoding="utf-8")
    return path


def plain_model(repository: Path) -> torch.nn.Module:
    """What plain open_clip makes of the repository, without weights, in evaluation mode."""
    config = json.loads(repository.read_text())["model_cfg"]
    folder = str(repository.parent / "text")
    text = {**config["text_cfg"], "hf_model_name": folder, "hf_tokenizer_name": folder, "hf_model_pretrained": False}
    model: torch.nn.Module = open_clip.CustomTextCLIP(**{**config, "text_cfg": text})
    return model.eval()


def random_state(repository: Path, seed: int, spread: float = 0.05) -> State:
    """Weights of an untrained model, pushed apart by seed."""
    torch.manual_seed(seed)
    return perturbed(plain_model(repository).state_dict(), seed, spread)


def as_published(state: State) -> State:
    """The state as older transformers stored it."""
    return {**state, POSITION_IDS: torch.arange(32)[None]}
