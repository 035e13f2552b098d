"""Checkpoints whose config ties the output head to the input embedding, but whose files do not.

transformers goes by the files: a head there that differs from the embedding is not tied, whatever the config says, and
one of the two alone serves as both. Adapters merged with `modules_to_save` and some trainers' saves are of that kind.
"""

from __future__ import annotations

from smolmoe.core.checkpoint import FLOAT_DTYPES, Checkpoint

_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tokens_embed.weight",
    "tok_embeddings.weight",
    "embeddings.weight",
)
_CHUNK_BYTES = 1 << 26


def head_name(checkpoint: Checkpoint) -> str | None:
    """The name on disk of the output head, or None."""
    return _named(checkpoint, _HEADS)


def embedding_name(checkpoint: Checkpoint) -> str | None:
    """The name on disk of the input embedding, or None."""
    return _named(checkpoint, _EMBEDDINGS)


def has_own_head(checkpoint: Checkpoint) -> bool:
    """Whether the files have both an input embedding and an output head, and other numbers in them."""
    head, embedding = head_name(checkpoint), embedding_name(checkpoint)
    if head is None or embedding is None:
        return False
    shape = checkpoint.tensors[head].shape
    infos = [checkpoint.tensors[name] for name in (head, embedding)]
    if any(info.dtype not in FLOAT_DTYPES for info in infos) or infos[1].shape != shape or not shape:
        return False  # nothing that a tied model could be made of: refused by name where tensors are checked
    rows = max(1, _CHUNK_BYTES * shape[0] // max(1, infos[0].nbytes))
    for start in range(0, shape[0], rows):
        part = start, min(start + rows, shape[0])
        if bool((checkpoint.read(head, part).float() != checkpoint.read(embedding, part).float()).any()):
            return True
    return False


def _named(checkpoint: Checkpoint, endings: tuple[str, ...]) -> str | None:
    """The one tensor of the name, or of the shortest that ends so."""
    found = [name for name in checkpoint.tensors if any(f".{name}".endswith(f".{end}") for end in endings)]
    return min(found, key=lambda name: (name.count("."), name), default=None)
