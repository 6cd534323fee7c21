"""How a checkpoint is referred to: a local file, an ``hf-hub:`` id, or an open_clip tag."""

HUB_PREFIX = "hf-hub:"
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def is_file_reference(reference: str) -> bool:
    """Whether a checkpoint reference names a local file rather than an open_clip tag or a hub id."""
    return not reference.startswith(HUB_PREFIX) and ("/" in reference or reference.endswith(FILE_SUFFIXES))
