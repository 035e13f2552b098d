"""What tensor names reveal: wrappers around a model, unmerged adapters, buffers that no class loads."""

from __future__ import annotations

from collections.abc import Collection

# Buffers that old checkpoints carry and that every class ignores or has in its code.
LEFTOVERS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".attn.bias",
    ".attn.masked_bias",
    ".attn.causal_mask",
    ".attention.bias",
    ".attention.masked_bias",
    ".self_attn.bias",
    ".self_attn.masked_bias",
)
_WRAPPERS = {
    "_orig_mod.": ("torch.compile", "Save `model._orig_mod` instead"),
    "module.": ("DataParallel or DeepSpeed", "Save `model.module` instead"),
    "base_model.model.": ("PEFT", "Save `model.merge_and_unload()` instead"),
    "_fsdp_wrapped_module.": ("FSDP", "Save the unwrapped model"),
    "_checkpoint_wrapped_module.": ("activation checkpointing", "Save the unwrapped model"),
}
_ADAPTER = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "base_layer")


def explain_names(expected: Collection[str], found: Collection[str]) -> tuple[str, str] | None:
    """Why a model's tensors are not found under their names, and what to do; None if the names do not show it.

    Args:
        expected: names in the class.
        found: names in the files.
    """
    adapter = next((name for name in sorted(found) if set(name.split(".")) & set(_ADAPTER)), None)
    if adapter is not None:
        return (
            f"tensor {adapter} is of an adapter that is not merged into the weights.",
            "Merge it (PEFT: `model.merge_and_unload()`), save the model, and give that.",
        )
    prefix = _prefix(expected, set(found))
    if prefix is None:
        return None
    maker, fix = next((said for part, said in _WRAPPERS.items() if part in prefix), ("", "Save the model by itself"))
    example = next(name for name in sorted(found) if prefix in name)
    by = f", as {maker} puts it" if maker else ""
    return (
        f"the names of the tensors have {prefix!r} in them that the class does not have{by}: {example}.",
        f"{fix}, or take {prefix!r} out of the names in the files.",
    )


def _prefix(expected: Collection[str], found: set[str]) -> str | None:
    """What is in front of the expected names or, where a wrapper is around a part of the model, within them."""
    absent = sorted(name for name in expected if name not in found)
    if not absent:
        return None
    for name in sorted(found):
        prefix = name.removesuffix(absent[0])
        if name.endswith(f".{absent[0]}") and 2 * sum(prefix + other in found for other in expected) > len(expected):
            return prefix
    for part in _WRAPPERS:
        if {*absent} <= {name.replace(part, "") for name in found if f".{part}" in f".{name}"}:
            return part
    return None
