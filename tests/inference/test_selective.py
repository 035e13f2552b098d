"""Only the chosen experts are read and held, and they compute what the whole MoE restricted to them computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import MOE_CONFIGS, VOCABULARY, dense_llama, edit_tensors, random_moe, save

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.errors import SourceError
from smolmoe.inference.offload import experts_modules, offload_experts
from smolmoe.inference.selective import SelectiveModel
from smolmoe.moe.loading import load_model
from smolmoe.moe.restrict import only_experts

KINDS = [*MOE_CONFIGS, "generic"]


def make(kind: str, folder: Path) -> Path:
    if kind != "generic":
        return save(random_moe(kind, num_hidden_layers=3), folder)
    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

    torch.manual_seed(0)
    sizes = {"num_experts": 4, "shared_expert_intermediate_size": 8, "scoring_func": "sigmoid"}
    return save(SmolMoeForCausalLM(SmolMoeConfig(text_config=dense_llama().config.to_dict(), **sizes)), folder)


@pytest.mark.parametrize("experts", [(2,), (0, 1, 3)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_is_the_moe_restricted_to_them(kind: str, experts: tuple[int, ...], tmp_path: Path) -> None:
    folder = make(kind, tmp_path)
    ids = torch.randint(2, VOCABULARY, (2, 9))
    whole = load_model(folder)
    selective = SelectiveModel(folder)
    selective.load_shared()
    selective.load_experts(dict.fromkeys(selective.layers, experts))
    with only_experts(whole, dict.fromkeys(selective.layers, experts)):
        expected = whole(input_ids=ids).logits
    logits = selective.model(input_ids=ids).logits
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (logits - whole(input_ids=ids).logits).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_is_read_or_held(kind: str, tmp_path: Path) -> None:
    folder = make(kind, tmp_path)
    selective = SelectiveModel(folder)
    assert selective.bytes().read == 0
    selective.load_shared()
    shared = selective.bytes()
    assert shared.read == shared.held == shared.shared
    selective.load_experts(dict.fromkeys(selective.layers, (1,)))
    result = selective.bytes()
    one_each = sum(p.nbytes for m in experts_modules(load_model(folder)).values() for p in m.parameters()) // 4
    assert result.read == result.held == shared.shared + one_each
    assert result.total == sum(info.nbytes for info in open_checkpoint(folder).tensors.values())
    assert result.total == shared.shared + 4 * one_each
    assert not any(f"experts.{other}." in name for name, _ in selective.checkpoint.reads for other in (0, 2, 3))
    selective.load_shared()
    selective.load_experts(dict.fromkeys(selective.layers, (1,)))
    assert selective.bytes() == result  # what is there is not read again


@torch.no_grad()
def test_other_experts_take_their_place_and_a_layer_can_be_given_back(tmp_path: Path) -> None:
    folder = make("mixtral", tmp_path)
    ids = torch.randint(2, VOCABULARY, (1, 9))
    model = SelectiveModel(folder)
    model.load_shared()
    held = {}
    for experts in ((0,), (1, 2), (0,)):
        model.load_experts(dict.fromkeys(model.layers, experts))
        held[experts] = (model.bytes().held, model.model(input_ids=ids).logits)
    other = SelectiveModel(folder)
    other.load_shared()
    other.load_experts(dict.fromkeys(other.layers, (0,)))
    assert other.bytes().held == held[(0,)][0] < held[(1, 2)][0]
    logits = other.model(input_ids=ids).logits
    assert torch.equal(logits, held[(0,)][1])
    other.release(1)
    assert other.bytes().held < held[(0,)][0]
    other.load_shared()
    other.load_experts({1: (0,)})
    assert torch.equal(other.model(input_ids=ids).logits, logits)


@torch.no_grad()
def test_chosen_experts_can_be_offloaded_too(tmp_path: Path) -> None:
    selective = SelectiveModel(make("qwen2_moe", tmp_path))
    selective.load_shared()
    selective.load_experts(dict.fromkeys(selective.layers, (0, 1, 3)))
    ids = torch.randint(2, VOCABULARY, (2, 9))
    expected = selective.model(input_ids=ids).logits
    traffic = offload_experts(selective.model, device="cpu")
    assert torch.equal(selective.model(input_ids=ids).logits, expected)
    assert traffic.misses > 0


@torch.no_grad()
def test_tied_embeddings_that_the_files_have_twice(tmp_path: Path) -> None:
    folder = make("mixtral", tmp_path)
    edit_tensors(
        folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    selective = SelectiveModel(folder)
    selective.load_group("stem")
    selective.load_shared()
    selective.load_experts(dict.fromkeys(selective.layers, range(4)))
    ids = torch.randint(2, VOCABULARY, (1, 9))
    assert torch.equal(selective.model(input_ids=ids).logits, load_model(folder)(input_ids=ids).logits)


def test_sixteen_bit_files_stay_sixteen_bit(tmp_path: Path) -> None:
    folder = save(random_moe("glm4_moe").to(torch.bfloat16), tmp_path)
    selective = SelectiveModel(folder)
    selective.load_shared()
    selective.load_experts(dict.fromkeys(selective.layers, (2, 3)))
    whole = load_model(folder, dtype=torch.bfloat16)
    assert {n: t.dtype for n, t in selective.model.state_dict().items()} == {
        n: t.dtype for n, t in whole.state_dict().items()
    }


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="dense"):
        SelectiveModel(save(dense_llama(), tmp_path))
