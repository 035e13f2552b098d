"""Find the feed-forward networks of any decoder-only model: first by structure, then by what they compute.

No family is known by name here. The causal LM is built on the meta device, the single FFN of each layer is
found by its shapes, and a small copy of it with random weights must match our formula; its gate, its
activation and its dropout are inferred from the output.
"""

from __future__ import annotations

import copy
import logging
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from smolmoe.errors import SourceError
from smolmoe.families.types import MlpLayout, Slot

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

log = logging.getLogger(__name__)

ALREADY_MOE = "It is already a Mixture-of-Experts."
OTHER_FORMULA = "does not compute down(act(gate(x)) * up(x)) or down(act(up(x))) with a known activation"
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TINY_HIDDEN, TINY_WIDTH = 16, 24
TOLERANCE = 1e-6  # relative, in fp64; the nearest two activations (both kinds of GELU) differ by 1e-4


def find_mlp(config: PreTrainedConfig) -> MlpLayout:
    """The location of the FFNs in the decoder that `config` describes, and what they compute.

    The config is not changed, no weights are read and the global random state is preserved.

    Raises:
        SourceError: the model is not a dense decoder-only causal LM, or its layers have no single FFN module of the
            form down(act(gate(x)) * up(x)) or down(act(up(x))) that is the same in every layer. States the reason.
    """
    _check_kind(config)
    model = _skeleton(config)
    if any("Expert" in type(module).__name__ for module in model.modules()):
        _refuse(config, ALREADY_MOE, "Use the dense model it was made from.")
    path, layers = _decoder_layers(model, config)
    layouts = [_layer_layout(config, path, layer) for layer in layers]
    widths = [
        _sizes(layer.get_submodule(f"{m.module}.{m.down.name}"))[0] for layer, m in zip(layers, layouts, strict=True)
    ]
    for index, found in enumerate(zip(layouts, widths, strict=True)):
        if found != (first := (layouts[0], widths[0])):
            _refuse(config, f"The FFN of layer {index} differs from that of layer 0: {found} instead of {first}.")
    log.debug("%s: %s", config.model_type, layouts[0])
    return layouts[0]


def _refuse(config: PreTrainedConfig, reason: str, fix: str | None = None) -> NoReturn:
    raise SourceError(reason, field="model_type", value=config.model_type, fix=fix)


def _check_kind(config: PreTrainedConfig) -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    dense = "Use a dense decoder-only language model (such as Llama, Qwen or GPT-2)."
    if config.is_encoder_decoder:
        _refuse(config, "It is an encoder-decoder model.", dense)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        _refuse(config, "It is an encoder: a masked language model, not a causal one.", dense)
    counts = [getattr(config, name, None) for name in EXPERT_COUNTS]
    blocks = getattr(config, "layers_block_type", None)  # Nemotron-H states experts also where no block has any
    if any(isinstance(count, int) and count > 1 for count in counts) and (blocks is None or "moe" in blocks):
        _refuse(config, ALREADY_MOE, "Use the dense model it was made from.")
    if config.get_text_config() is not config:
        _refuse(config, "It is a composite (multimodal) model.", "Save its text model separately and use that.")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        _refuse(config, "This version of transformers has no causal language model of this type.", dense)


def _skeleton(config: PreTrainedConfig) -> nn.Module:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except Exception as error:  # model code may raise anything; the cause is this config
        _refuse(config, f"The model cannot be built from this config ({type(error).__name__}: {error}).")


def _decoder_layers(model: nn.Module, config: PreTrainedConfig) -> tuple[str, nn.ModuleList]:
    """The outermost list of `num_hidden_layers` modules of one class."""
    from torch import nn

    count = getattr(config, "num_hidden_layers", None)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and len({type(layer) for layer in module}) == 1:
            return path, module
    _refuse(config, f"The model has no list of {count} decoder layers of one class.")


class _Roles(NamedTuple):
    """The role of each projection, as names inside the FFN."""

    gate: Slot | None
    up: Slot
    down: Slot


class _NotAnFfnError(Exception):
    """Why a module with the shape of an FFN is not one; continues a sentence that begins with the module's name."""


def _layer_layout(config: PreTrainedConfig, layers: str, layer: nn.Module) -> MlpLayout:
    """The layout of the single FFN in a layer."""
    found: dict[str, MlpLayout] = {}
    reasons: dict[str, str] = {}
    for path, module in layer.named_modules():
        if not path or "attention" in type(module).__name__.lower() or any(path.startswith(f"{p}.") for p in found):
            continue
        for roles in _possible_roles(module, getattr(config, "hidden_size", None)):
            reasons.setdefault(path, f"`{path}` ({type(module).__name__}) {OTHER_FORMULA}")
            try:
                if layout := _identify(config, layers, path, module, roles):
                    found[path] = layout
                    break
            except _NotAnFfnError as why:
                reasons[path] = f"`{path}` ({type(module).__name__}) {why}"
    if len(found) > 1:
        _refuse(config, f"A layer has more than one FFN: {', '.join(found)}.")
    if not found:
        _refuse(config, _why_none(layer, list(reasons.values())))
    return found.popitem()[1]


def _why_none(layer: nn.Module, reasons: list[str]) -> str:
    bare = [name for name, child in layer.named_children() if _is_projection(child)]
    if reasons:
        return f"Its layers have no replaceable FFN:  {'; '.join(reasons)}."
    if bare:
        return f"Its FFN is not a separate module that can be replaced: {', '.join(bare)} are directly in the layer."
    kind = type(layer).__name__
    return f"No module inside its layers ({kind}) consists of just 2 or 3 projections, hidden to wide and back."


def _is_projection(module: nn.Module) -> bool:
    from torch import nn
    from transformers import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _is_transposed(leaf: nn.Module) -> bool:
    return hasattr(leaf, "nf")  # Conv1D keeps [in, out]


def _sizes(leaf: Any) -> tuple[int, int]:
    """(in, out) of a Linear or a Conv1D."""
    rows, columns = leaf.weight.shape
    return (rows, columns) if _is_transposed(leaf) else (columns, rows)


def _leaves(ffn: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in ffn.named_modules() if _is_projection(module)}


def _possible_roles(module: nn.Module, hidden_size: int | None) -> list[_Roles]:
    """All interpretations of the module as an FFN that its shapes allow; empty unless it has 2 or 3 projections."""
    leaves = _leaves(module)
    tensors = sum(1 for _ in module.parameters()) + sum(1 for _ in module.buffers())
    if len(leaves) not in (2, 3) or tensors != sum(1 + (leaf.bias is not None) for leaf in leaves.values()):
        return []
    found = []
    for *first, down in permutations(leaves, len(leaves)):
        (_, wide), (width, hidden) = _sizes(leaves[first[0]]), _sizes(leaves[down])
        if hidden != hidden_size or any(_sizes(leaves[name]) != (hidden, wide) for name in first):
            continue
        if wide == width:
            found.append(_Roles(Slot(first[0]) if len(first) == 2 else None, Slot(first[-1]), Slot(down)))
        elif wide == 2 * width and len(first) == 1:
            found += [_Roles(Slot(first[0], half), Slot(first[0], 1 - half), Slot(down)) for half in (0, 1)]
    return found


def _identify(config: PreTrainedConfig, layers: str, path: str, module: nn.Module, roles: _Roles) -> MlpLayout | None:
    """Run the module and find the activation with which these roles reproduce its output; None if not found."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ffn = _small_copy(module, roles)
        x = torch.randn(4, 64, TINY_HIDDEN, dtype=torch.float64) * torch.tensor([0.01, 0.1, 1.0, 3.0])[:, None, None]
        output = _run(ffn.eval(), x)
        activation = _activation(config, ffn, roles, x, output)
        if activation is None:
            return None
        dropout = _dropout(_run(ffn.train(), x), output)
    leaves = _leaves(module).values()
    if len({_is_transposed(leaf) for leaf in leaves}) > 1 or len({leaf.bias is not None for leaf in leaves}) > 1:
        raise _NotAnFfnError("mixes projections with and without a bias, or of two types")
    return MlpLayout(
        layers=layers,
        module=path,
        **roles._asdict(),
        transposed=any(_is_transposed(leaf) for leaf in leaves),
        bias=any(leaf.bias is not None for leaf in leaves),
        activation=activation,
        dropout=dropout,
    )


def _small_copy(module: nn.Module, roles: _Roles) -> nn.Module:
    """The same module with small random fp64 weights: its own forward with much less memory."""
    import torch

    ffn = copy.deepcopy(module)
    for name, leaf in _leaves(ffn).items():
        n_in, n_out = TINY_HIDDEN, TINY_WIDTH if roles.up.half is None else 2 * TINY_WIDTH
        if name == roles.down.name:
            n_in, n_out = TINY_WIDTH, TINY_HIDDEN
        shape = (n_in, n_out) if _is_transposed(leaf) else (n_out, n_in)
        leaf.weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64), requires_grad=False)
        if leaf.bias is not None:
            leaf.bias = torch.nn.Parameter(torch.randn(n_out, dtype=torch.float64), requires_grad=False)
        if _is_transposed(leaf):
            leaf.nx, leaf.nf = n_in, n_out
    return ffn


def _run(ffn: nn.Module, x: Tensor) -> Tensor:
    import torch

    try:
        output = ffn(x)
    except Exception as error:  # model code may raise anything; it is then not a plain function of x
        raise _NotAnFfnError(f"cannot be called with the hidden states alone ({error})") from error
    if not isinstance(output, torch.Tensor) or output.shape != x.shape:
        raise _NotAnFfnError("does not return a single tensor with the shape of the hidden states")
    return output


def _activation(config: PreTrainedConfig, ffn: nn.Module, roles: _Roles, x: Tensor, output: Tensor) -> str | None:
    """The activation that reproduces `output`; the one named in the config takes precedence over its synonyms."""
    from transformers.activations import ACT2FN

    gate, up = (_project(ffn, slot, x) if slot else None for slot in (roles.gate, roles.up))
    named = [value for value in config.to_dict().values() if isinstance(value, str) and value in ACT2FN]
    for name in dict.fromkeys([*named, *ACT2FN]):
        act = ACT2FN[name]
        if any(True for _ in act.parameters()):
            continue  # trained activations have weights, which a layout does not support
        ours = ffn.get_submodule(roles.down.name)(act(up) if gate is None else act(gate) * up)
        error = (ours - output).abs().amax(-1) / output.abs().amax(-1)
        if error.max() <= TOLERANCE:
            return name
    return None


def _project(ffn: nn.Module, slot: Slot, x: Tensor) -> Tensor:
    y = ffn.get_submodule(slot.name)(x)
    return y if slot.half is None else y.chunk(2, dim=-1)[slot.half]


def _dropout(trained: Tensor, output: Tensor) -> float:
    """The dropout probability p after `down`, inferred in training mode: surviving values are divided by 1 - p."""
    import torch

    if torch.equal(trained, output):
        return 0.0
    alive = trained != 0
    scale = trained[alive] / output[alive]
    if alive.all() or not alive.any() or (scale - scale.median()).abs().max() > TOLERANCE:
        raise _NotAnFfnError("applies dropout to more than its output in training; set it to 0 in config.json")
    return round(1 - 1 / scale.median().item(), 6)
