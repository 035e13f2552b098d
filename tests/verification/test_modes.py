"""What a full and a quick verification find, what they record, and how much work they do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import VOCABULARY, dense_llama, edit_tensors, moe_of, save
from typer.testing import CliRunner

import smolmoe
from smolmoe.core.checkpoint import Checkpoint
from smolmoe.errors import RequestError, VerificationError
from smolmoe.moe.streaming import StreamedModel, random_like
from smolmoe.results.verification import QUICK_LEAVES_OUT, Verification
from smolmoe.verification import logits as logits_module
from smolmoe.verification.logits import Comparison
from smolmoe.verification.scope import SCOPES, Inputs
from smolmoe.verification.verify import verify

Tensors = dict[str, torch.Tensor]
SMALL: dict[str, Any] = {"sequences": 3, "length": 32, "new_tokens": 4}
LAYER = "model.layers.1.block_sparse_moe"


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    """Two shards of each FFN: a router that splits the groups changes the function."""
    return save(moe_of(dense_llama(), experts=4, top_k=2, granularity=2), tmp_path / "moe")


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.checks if not check.passed}


def _one_expert(tensors: Tensors) -> None:
    tensors[f"{LAYER}.experts.3.w2.weight"] *= 1.01


def _one_router_row(tensors: Tensors) -> None:
    tensors[f"{LAYER}.gate.weight"][1] *= -1


def _one_norm(tensors: Tensors) -> None:
    tensors["model.layers.0.input_layernorm.weight"] *= 1.01


def _head(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"][:] = tensors["model.embed_tokens.weight"].roll(1, 0)


def _not_a_number(tensors: Tensors) -> None:
    tensors[f"{LAYER}.experts.3.w2.weight"][0, 0] = float("nan")


CLAIM = {"kind": "exact", "granularity": 2}


@pytest.mark.parametrize("mode", ["full", "quick"])
def test_a_correct_moe_passes_in_either_mode(mode: Any, dense: Path, moe: Path, text: Path) -> None:
    result = verify(dense, moe, mode=mode, text=text, claim=CLAIM, **SMALL)
    assert result.passed, failed(result)
    assert result.mode == mode
    assert result.experts is not None
    assert result.experts.reached == result.experts.total == 8
    assert (result.padding is None) == (result.decoding is None) == (mode == "quick")
    assert Verification.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize("mode", ["full", "quick"])
@pytest.mark.parametrize("edit", [_one_expert, _one_router_row, _one_norm, _head])
def test_a_wrong_tensor_is_found_in_either_mode(
    edit: Callable[[Tensors], None], mode: Any, dense: Path, moe: Path, text: Path
) -> None:
    edit_tensors(moe, edit)
    assert "logits" in failed(verify(dense, moe, mode=mode, text=text, claim=CLAIM, **SMALL))


@pytest.mark.parametrize("mode", ["full", "quick"])
def test_a_nan_is_counted_while_the_tensor_is_read(mode: Any, dense: Path, moe: Path, text: Path) -> None:
    edit_tensors(moe, _not_a_number)
    result = verify(dense, moe, mode=mode, text=text, claim=CLAIM, **SMALL)
    weights = next(check for check in result.checks if check.name == "weights")
    assert not weights.passed
    assert "experts.3.w2.weight: 1 of its" in weights.meaning


def test_padding_and_cache_are_what_only_full_checks(
    dense: Path, moe: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mixtral import modeling_mixtral

    real = modeling_mixtral.create_causal_mask
    lost = {"attention_mask": None, "position_ids": None}
    monkeypatch.setattr(modeling_mixtral, "create_causal_mask", lambda **options: real(**{**options, **lost}))
    options: dict[str, Any] = {"text": text, "claim": CLAIM, **SMALL}
    assert {"padding", "padding (itself)"} <= failed(verify(dense, moe, **options))
    assert verify(dense, moe, mode="quick", **options).passed


def test_experts_that_no_token_reaches_are_counted(dense: Path, text: Path, tmp_path: Path) -> None:
    model = moe_of(dense_llama(), experts=4, top_k=1)
    with torch.no_grad():  # the last layer sends all tokens to its first expert
        model.model.layers[1].mlp.gate.weight.zero_()
    moe = save(model, tmp_path / "moe")
    found = verify(dense, moe, mode="quick", text=text, claim={"kind": "exact"}, **SMALL).experts
    assert found is not None
    assert found.total == 8
    assert found.reached <= 5


def test_ffns_are_compared_on_all_sequences_if_their_errors_are_predicted() -> None:
    """A prediction holds for the mean over the text; what is only shown takes the shortest and the longest."""
    sequences = [torch.arange(length) for length in (9, 5, 8, 7)]

    def probed(*, predicted: bool) -> list[int]:
        return [*Inputs.of(sequences, SCOPES["full"], 2, None, "cpu", predicted=predicted).probed]

    assert probed(predicted=True) == [0, 1, 2, 3]
    assert probed(predicted=False) == [0, 1]


# Work


@pytest.mark.parametrize("mode", ["full", "quick"])
def test_each_tensor_is_read_once(
    mode: Any, dense: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the layers; embeddings, final norm and head are read once more in 16 bits."""
    moe = save(moe_of(dense_llama()).to(torch.bfloat16), tmp_path / "moe")
    read, found = Checkpoint.read, Counter[tuple[str, str]]()

    def counted(self: Checkpoint, name: str, *args: Any, **options: Any) -> torch.Tensor:
        found[self.folder.name, name] += 1
        return read(self, name, *args, **options)

    monkeypatch.setattr(Checkpoint, "read", counted)
    monkeypatch.setattr(Checkpoint, "not_finite", None)  # which reads all of them again
    result = verify(dense, moe, mode=mode, text=text, claim={"kind": "exact"}, **SMALL)
    assert result.passed, failed(result)
    assert (result.half is None) == (mode == "quick")
    assert {count for (_, name), count in found.items() if ".layers." in name} == {1}
    assert max(found.values()) == (1 if mode == "quick" else 2)


def test_quick_runs_a_part_of_the_layers(dense: Path, text: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama()).to(torch.bfloat16), tmp_path / "moe")
    runs: dict[str, int] = {}
    for mode in ("full", "quick"):
        count = 0
        real = StreamedModel._run_layer

        def counted(self: Any, index: int, forward: Any, *args: Any, real: Any = real, **options: Any) -> Any:
            nonlocal count
            count += self._depth is None or index == self._depth
            return real(self, index, forward, *args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StreamedModel, "_run_layer", counted)
            verify(dense, moe, mode=mode, text=text, length=32, new_tokens=4)  # type: ignore[arg-type]
        runs[mode] = count
    # Two layers. Full: 6 plain and 2 padded batches, 4 decoded tokens, 2 in 16 bits, of both; 1 uncached, 2 control.
    assert runs["full"] == 2 * (2 * (6 + 2 + 4 + 2) + 1 + 2)
    # Quick: 2 plain of both, 1 padded of the dense model, 2 control.
    assert runs["quick"] == 2 * (2 * 2 + 1 + 2)


@pytest.mark.parametrize("mode", ["full", "quick"])
def test_progress_rises_to_the_total_and_the_parts_are_timed(
    mode: Any, dense: Path, text: Path, tmp_path: Path
) -> None:
    moe = save(moe_of(dense_llama()).to(torch.bfloat16), tmp_path / "moe")
    told: list[tuple[str, int, int]] = []
    result = verify(dense, moe, mode=mode, text=text, report=lambda *report: told.append(report[:3]), **SMALL)
    (total,) = {total for _, _, total in told}
    done = [done for _, done, _ in told]
    assert {what for what, _, _ in told} == {"verify"}
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == total
    assert len(set(done)) >= (12 if mode == "full" else 6)  # each layer of each run
    parts = ["open", "dense model", "MoE", "control"]
    if mode == "full":
        parts[2:3] = ["dense model, decoding", "dense model, 16 bits", "MoE", "MoE, decoding", "MoE, 16 bits"]
    assert list(result.seconds_by_part) == parts


def test_few_sequences_are_the_shortest_and_the_longest() -> None:
    sequences = [torch.zeros(length, dtype=torch.long) for length in (20, 32, 16, 25)]
    inputs = Inputs.of(sequences, SCOPES["full"], 4, None, "cpu")
    assert inputs.few == [1, 2]
    assert [len(prompt) for prompt in inputs.prompts] == [8, 4]
    assert Inputs.of(sequences[:1], SCOPES["full"], 4, None, "cpu").few == [0]
    assert not Inputs.of(sequences, SCOPES["quick"], 4, None, "cpu").prompts


# Computation


@pytest.mark.parametrize("target", ["mixtral", "granitemoeshared", "qwen2_moe"])
def test_layers_cast_in_memory_are_those_read_from_disk(target: str, tmp_path: Path) -> None:
    folder = save(moe_of(dense_llama(), target).to(torch.bfloat16), tmp_path / "moe")
    batch = [{"input_ids": torch.arange(5, 21)[None]}]
    with StreamedModel(folder) as exact:
        next(exact.logits(batch))
        options: dict[str, Any] = {"dtype": torch.bfloat16, "resident_bytes": 0}
        with StreamedModel(folder, memory=exact, **options) as cast, StreamedModel(folder, **options) as read:
            assert torch.equal(next(cast.logits(batch)), next(read.logits(batch)))
        assert not next(exact.layers[0].parameters()).is_meta


def test_transformed_parameters_are_restored(moe: Path) -> None:
    batch = [{"input_ids": torch.arange(5, 21)[None]}]
    with StreamedModel(moe) as streamed:
        before = next(streamed.logits(batch))
        with streamed.transformed(lambda name, tensor: tensor * 2 if "experts" in name else tensor):
            assert not torch.equal(next(streamed.logits(batch)), before)
        assert torch.equal(next(streamed.logits(batch)), before)


def test_a_random_stack_repeats_one_expert_with_the_statistics_of_all() -> None:
    torch.manual_seed(0)
    stack = 0.5 + 2 * torch.randn(4, 64, 48)
    drawn = random_like(["experts"], seed=3)("experts", stack)
    assert drawn.shape == stack.shape
    assert torch.equal(drawn[0], drawn[3])
    assert drawn.mean() == pytest.approx(0.5, abs=0.1)
    assert drawn.std() == pytest.approx(2, abs=0.1)


def test_kl_a_few_tokens_at_a_time_is_the_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    a, ids = torch.randn(7, VOCABULARY), torch.randint(VOCABULARY, (7,))
    b = a + 1e-5 * torch.randn(7, VOCABULARY)
    monkeypatch.setattr(logits_module, "IN_CACHE", 2 * VOCABULARY)
    comparison = Comparison()
    comparison.add(a, b, ids)
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    assert comparison.kl == pytest.approx((p * (p.log() - q.log())).sum().item() / 7, rel=1e-6)


# Recipes, command and record


def _upcycled(dense: Path, out: Path, *options: str) -> Any:
    import typer

    from smolmoe.cli.upcycle import COMMAND

    app = typer.Typer()
    COMMAND.add_to(app)
    return CliRunner().invoke(app, [str(dense), str(out), "--experts", "4", *options])


def test_the_mode_is_shown_and_recorded(tmp_path: Path) -> None:
    dense = save(dense_llama(), tmp_path / "dense")
    ran = _upcycled(dense, tmp_path / "moe", "--verify", "quick")
    assert ran.exit_code == 0, ran.output
    assert "Verified on the files as written (quick)" in ran.output
    assert f"{QUICK_LEAVES_OUT}; --verify full does" in ran.output
    record = json.loads((tmp_path / "moe" / "smolmoe.json").read_text())
    assert record["verification"]["mode"] == "quick"
    assert f"it left out {QUICK_LEAVES_OUT}" in (tmp_path / "moe" / "README.md").read_text()
    full = _upcycled(dense, tmp_path / "full")
    assert "Verified on the files as written (full)" in full.output
    assert json.loads((tmp_path / "full" / "smolmoe.json").read_text())["verification"]["mode"] == "full"
    assert "left out" not in (tmp_path / "full" / "README.md").read_text()
    assert "Verified" not in _upcycled(dense, tmp_path / "none", "--verify", "none").output
    assert json.loads((tmp_path / "none" / "smolmoe.json").read_text())["verification"] is None


def test_other_modes_are_refused(tmp_path: Path) -> None:
    dense = save(dense_llama(), tmp_path / "dense")
    with pytest.raises(RequestError) as caught:
        smolmoe.upcycle(dense, tmp_path / "moe", verify=False)
    assert caught.value.field == "verify"
    assert "quick" in str(caught.value)


def test_verify_has_the_mode_as_an_option(dense: Path, moe: Path) -> None:
    from smolmoe.cli import app

    ran = CliRunner().invoke(app, ["verify", str(dense), str(moe), "--mode", "quick"])
    assert "Verified on the files as written (quick)" in ran.output, ran.output
    assert f"{QUICK_LEAVES_OUT}; --mode full does" in ran.output
    assert "No such option" in CliRunner().invoke(app, ["verify", str(dense), str(moe), "--verify", "quick"]).output


def test_the_public_function_and_a_pipeline_take_the_mode(dense: Path, moe: Path, tmp_path: Path) -> None:
    from smolmoe.pipeline.stages.verify import STAGE, verdict
    from smolmoe.recipe.verification import VerifyRecipe

    assert smolmoe.verify(dense, moe, mode="quick", **SMALL).mode == "quick"
    recipe = VerifyRecipe(dense=str(dense), moe=str(moe), mode="quick")
    found = STAGE.run(recipe, tmp_path, lambda *report: None)
    assert found["mode"] == "quick"
    assert verdict(found).startswith("verified, quick (none)")
    edit_tensors(moe, _not_a_number)
    with pytest.raises(VerificationError, match="weights"):
        STAGE.run(recipe, tmp_path, lambda *report: None)
