"""The actual inputs of the dense model's FFNs on a text, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.core.devices import pick_device

if TYPE_CHECKING:
    from torch import Tensor

SEQUENCE = 256  # tokens of the texts that initialisers read
Consumer = Callable[[int, "list[Tensor]"], None]


def sequence_length(folder: Path) -> int:
    """Tokens of a sequence: SEQUENCE, or the model's context if that is shorter."""
    from smolmoe.moe.loading import load_config

    config = load_config(folder).get_text_config()
    return min(SEQUENCE, getattr(config, "max_position_embeddings", None) or SEQUENCE)


def each_layers_inputs(
    folder: Path, sequences: Sequence[Sequence[int]], consume: Consumer, *, device: str = "auto"
) -> None:
    """Run the dense model over token sequences and pass each layer's FFN inputs to `consume`.

    Only one layer's inputs, and the weights for it, are in memory at a time.

    Args:
        folder: of the dense model.
        sequences: token ids; each sequence runs alone, without padding.
        consume: called once per layer, in order, with the layer's index and one tensor [S, D] (float32) per sequence.
    """
    import torch

    from smolmoe.moe.streaming import StreamedModel

    device = pick_device(device)
    with StreamedModel(folder, device=device) as streamed:
        seen: list[Tensor] = []

        def hook(layer: int) -> Callable[..., None]:
            def keep(module: object, args: tuple[Tensor, ...]) -> None:
                seen.append(args[0].reshape(-1, args[0].shape[-1]).detach().float().cpu())
                if len(seen) == len(sequences):
                    consume(layer, list(seen))
                    seen.clear()

            return keep

        for layer in range(len(streamed.layers)):
            streamed.mlp(layer)[0].register_forward_pre_hook(hook(layer))
        batches = [{"input_ids": torch.tensor([list(ids)], device=device)} for ids in sequences]
        for _ in streamed.logits(batches):
            pass
