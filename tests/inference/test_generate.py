"""Text comes out, the same for the same seed, and what cannot be done is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIZES, dense_llama, moe_of, random_moe, save, tiny_tokenizer

from smolmoe.errors import RequestError, SourceError
from smolmoe.inference.generate import generate, generate_all
from smolmoe.inference.sampling import until_end


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_moe("mixtral", eos_token_id=None), tmp_path_factory.mktemp("moe"))


def test_greedy_text_is_what_transformers_generates(moe: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(moe)
    ids = tokenizer("def add(", return_tensors="pt")
    stock = AutoModelForCausalLM.from_pretrained(moe)
    expected = stock.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=1)[0, ids["input_ids"].shape[1] :]
    result = generate(moe, "def add(", max_new_tokens=12, temperature=0)
    assert result.texts == (tokenizer.decode(expected, skip_special_tokens=True),)
    assert result.new_tokens == (12,)
    assert result.prompt == "def add("
    assert result.to_json()["texts"] == result.texts


def test_a_dense_model_and_its_exact_moe_write_the_same(tmp_path: Path) -> None:
    dense, moe = save(dense_llama(), tmp_path / "dense"), save(moe_of(dense_llama()), tmp_path / "moe")
    options: dict[str, Any] = {"max_new_tokens": 20, "num": 2, "seed": 3}
    assert generate(dense, "The sum", **options).texts == generate(moe, "The sum", **options).texts


def test_the_generic_model_needs_no_remote_code(tmp_path: Path) -> None:
    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

    config = SmolMoeConfig(text_config=dense_llama().config.to_dict(), num_experts=4)
    folder = save(SmolMoeForCausalLM(config), tmp_path)
    assert len(generate(folder, "The sum", max_new_tokens=4).texts) == 1


def test_samples_follow_the_seed_and_differ_from_each_other(moe: Path) -> None:
    state = torch.random.get_rng_state()
    first = generate(moe, "The", num=3, max_new_tokens=10, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert generate(moe, "The", num=3, max_new_tokens=10, seed=1).texts == first.texts
    assert generate(moe, "The", num=3, max_new_tokens=10, seed=2).texts != first.texts
    assert len(set(first.texts)) == 3


def test_a_tiny_nucleus_is_greedy_and_a_penalty_is_not(moe: Path) -> None:
    greedy = generate(moe, "The sum", temperature=0, max_new_tokens=16)
    assert generate(moe, "The sum", top_p=1e-6, max_new_tokens=16, seed=5).texts == greedy.texts
    assert generate(moe, "The sum", temperature=0, repetition_penalty=5.0, max_new_tokens=16).texts != greedy.texts


def test_of_the_checkpoints_settings_those_of_sampling_count(moe: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    own: dict[str, Any] = {"temperature": 0.3, "top_k": 5, "min_p": 0.1, "top_p": 0.9, "repetition_penalty": 1.2}
    folder = save(random_moe("mixtral", eos_token_id=None), tmp_path)
    GenerationConfig(do_sample=True, no_repeat_ngram_size=1, **own).save_pretrained(folder)
    options: dict[str, Any] = {"num": 2, "max_new_tokens": 10, "seed": 1}
    found = generate(folder, "The sum", **options)
    assert found.texts == generate(moe, "The sum", **options, **own).texts
    assert set(found.sampling.origin.values()) == {"model"}
    assert generate(folder, "The sum", **options, temperature=2.0).texts != found.texts


def test_the_end_of_text_ends_it(tmp_path: Path) -> None:
    model = dense_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert tiny_tokenizer().eos_token_id == 0  # the first of equal logits
    result = generate(save(model, tmp_path), "The sum", temperature=0, max_new_tokens=9)
    assert result.new_tokens == (1,)
    assert result.texts == ("",)
    # what follows it in a batch whose other rows went on is padding
    assert until_end([8, 0, 0, 0], [0]) == [8, 0]
    assert until_end([8, 9], [0]) == [8, 9]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("repetition_penalty", 0.0),
        ("num", 0),
        ("batch_size", 0),
    ],
)
def test_values_out_of_range_are_named(moe: Path, field: str, value: float) -> None:
    with pytest.raises(RequestError) as caught:
        generate(moe, "The", **{field: value})
    assert caught.value.field == field
    assert caught.value.fix


def test_requests_that_make_no_sense_are_refused(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="same text"):
        generate(moe, "The", temperature=0, num=2)
    with pytest.raises(RequestError, match="Use at most 1"):
        generate(moe, "The", max_new_tokens=128)
    with pytest.raises(RequestError, match="context"):
        generate(moe, "The sum of three and four. " * 40, max_new_tokens=1)
    with pytest.raises(RequestError, match="no tokens"):
        generate(moe, "")
    with pytest.raises(SourceError, match="no such model folder"):
        generate(tmp_path / "nowhere", "The")
    bare = save(dense_llama(), tmp_path / "bare", tokenizer=False)
    with pytest.raises(SourceError, match="tokenizer"):
        generate(bare, "The")


@pytest.mark.parametrize("asked", [["code"], [2, "web"], "web", "auto"])
def test_chosen_experts_write_what_the_whole_model_restricted_to_them_writes(asked: Any, tmp_path: Path) -> None:
    from smolmoe.moe.loading import load_model
    from smolmoe.moe.names import set_expert_names
    from smolmoe.moe.restrict import only_experts

    model = random_moe("mixtral", eos_token_id=None)
    set_expert_names(model.config, ["code", "web", None, None])
    folder = save(model, tmp_path)
    result = generate(folder, "def add(", experts=asked, temperature=0, max_new_tokens=12)
    loaded = result.experts
    assert loaded is not None
    assert loaded.indices == {"code": (0,), "2": (1, 2), "w": (1,)}.get(str(asked[0]), loaded.indices)
    assert len(loaded.names) == len(loaded.indices)
    assert (loaded.confidence is not None) == (asked == "auto")
    assert loaded.bytes.shared < loaded.bytes.held < loaded.bytes.total
    ids = torch.tensor([tiny_tokenizer()("def add(")["input_ids"]])
    whole = load_model(folder)
    with only_experts(whole, dict.fromkeys((0, 1), loaded.indices)):
        expected = whole.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=1)[0, ids.shape[1] :]
    assert result.texts == (tiny_tokenizer().decode(expected, skip_special_tokens=True),)
    assert result.to_json()["experts"]["bytes"]["read"] >= loaded.bytes.held
    offloaded = generate(folder, "def add(", experts=asked, temperature=0, max_new_tokens=12, offload_experts=True)
    assert offloaded.texts == result.texts


def test_the_end_of_text_of_the_generation_settings_holds_for_chosen_experts(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    folder = save(random_moe("mixtral", eos_token_id=None), tmp_path)
    assert generate(folder, "The sum", temperature=0, max_new_tokens=5, experts=[0]).new_tokens == (5,)
    GenerationConfig(eos_token_id=list(range(300))).save_pretrained(folder)
    assert generate(folder, "The sum", temperature=0, max_new_tokens=5, experts=[0]).new_tokens == (1,)


def test_offloaded_experts_write_the_same(moe: Path) -> None:
    options: dict[str, Any] = {"num": 2, "max_new_tokens": 10, "seed": 1}
    whole = generate(moe, "The sum", **options)
    offloaded = generate(moe, "The sum", **options, offload_experts=True, expert_memory=80_000)
    assert offloaded.texts == whole.texts
    assert whole.offload is None
    assert offloaded.offload is not None
    assert 0 < offloaded.offload.held_bytes < offloaded.offload.experts_bytes
    assert offloaded.to_json()["offload"]["moved_bytes"] > 0


def test_experts_that_cannot_be_had_are_refused(moe: Path, tmp_path: Path) -> None:
    dense = save(dense_llama(), tmp_path)
    with pytest.raises(SourceError, match="dense"):
        generate(dense, "The", experts="auto")
    with pytest.raises(RequestError, match="dense"):
        generate(dense, "The", offload_experts=True)
    with pytest.raises(RequestError, match="no names and experts 0 to 3"):
        generate(moe, "The", experts=["code"])
    with pytest.raises(RequestError, match="a budget needs"):
        generate(moe, "The", expert_memory=10**6)
    with pytest.raises(RequestError, match="do not fit"):
        generate(moe, "The", offload_experts=True, expert_memory=10)
    with pytest.raises(RequestError, match="no text"):
        generate(moe, " ", experts="auto")


@pytest.mark.parametrize("kind", ["mixtral", "generic", "dense"])
def test_a_batch_writes_what_each_prompt_alone_does(kind: str, tmp_path: Path) -> None:
    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

    if kind == "generic":
        torch.manual_seed(0)
        config = SmolMoeConfig(text_config=dense_llama(eos_token_id=None).config.to_dict(), num_experts=4)
        model: Any = SmolMoeForCausalLM(config)
    else:
        model = dense_llama() if kind == "dense" else random_moe("mixtral", eos_token_id=None)
    folder = save(model, tmp_path)
    prompts = ["The sum of three and four is seven", "def", "as everyone can see", "return a + b"]
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 9}
    alone = [generate(folder, prompt, **options) for prompt in prompts]
    for batch_size in (4, 3):
        together = generate_all(folder, prompts, batch_size=batch_size, **options)
        assert [result.texts for result in together] == [result.texts for result in alone]
        assert [result.prompt for result in together] == prompts
        assert [result.new_tokens for result in together] == [result.new_tokens for result in alone]


def test_several_samples_of_several_prompts_come_in_order(moe: Path) -> None:
    results = generate_all(moe, ["The sum", "def"], num=3, max_new_tokens=8, top_p=1e-6)
    greedy = generate_all(moe, ["The sum", "def"], temperature=0, max_new_tokens=8)
    assert [result.texts for result in results] == [result.texts * 3 for result in greedy]


def test_batches_that_cannot_be_are_refused(moe: Path) -> None:
    with pytest.raises(RequestError, match="no prompt is given"):
        generate_all(moe, [])
    with pytest.raises(RequestError, match="for a single prompt"):
        generate_all(moe, ["a", "b"], experts="auto")
    with pytest.raises(RequestError, match="Use at most"):
        generate_all(moe, ["a", "The sum of three and four. " * 4], max_new_tokens=110)


def test_experts_run_by_ours_and_single_tokens_in_bf16_by_torchs_products(moe: Path) -> None:
    from smolmoe.inference.decoding import fast_decoding
    from smolmoe.moe.kernels.register import set_experts

    model = random_moe("mixtral").to(torch.bfloat16)
    assert set_experts(model) == "smolmoe"
    assert set_experts(model, "eager") == "eager"
    assert set_experts(dense_llama()) is None
    with pytest.raises(RequestError, match="cannot be used"):
        set_experts(model, "nonsense")
    seen: list[tuple[int, bool]] = []
    model.lm_head.register_forward_hook(
        lambda module, args, out: seen.append((args[0].shape[1], torch.backends.mkldnn.enabled))
    )
    ids = torch.arange(5)[None]
    with fast_decoding(model), torch.no_grad():
        cache = model(ids).cache
        model(ids[:, :1], cache=cache)
        with pytest.raises(TypeError):
            model(ids[:, :1], nonsense=3, labels="no tensor")
        assert torch.backends.mkldnn.enabled
        model.float()
        model(ids[:, :1])
    model.to(torch.bfloat16)(ids[:, :1])
    before = torch.backends.mkldnn.enabled
    assert [on for _, on in seen[:2]] == [before, False]
    assert all(on for _, on in seen[-2:])


def test_the_command_takes_several_prompts_and_a_file(moe: Path, tmp_path: Path) -> None:
    import json

    from typer.testing import CliRunner

    from smolmoe.cli import app
    from smolmoe.errors import DataError

    file = tmp_path / "prompts.txt"
    file.write_text("The sum\n\nas\n")
    options = ["--temperature", "0", "--max-new-tokens", "5", "--json"]
    run = CliRunner().invoke(app, ["generate", str(moe), "--prompt", "def", "--prompts", str(file), *options])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert [result["prompt"] for result in found] == ["def", "The sum", "as"]
    assert tuple(found[1]["texts"]) == generate(moe, "The sum", temperature=0, max_new_tokens=5).texts
    one = CliRunner().invoke(app, ["generate", str(moe), "--prompt", "def", *options])
    assert json.loads(one.stdout)["texts"] == found[0]["texts"]
    missing = CliRunner().invoke(app, ["generate", str(moe), "--prompts", str(tmp_path / "none"), *options])
    assert isinstance(missing.exception, DataError)


def test_a_model_without_attention_is_refused_by_its_cause(tmp_path: Path) -> None:
    """transformers' cache counts tokens in layers with attention, and raises where there is none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from smolmoe import upcycle, verify

    sizes = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    sizes |= {"linear_value_head_dim": 8, "intermediate_size": 48, "layer_types": ["linear_attention"] * 2}
    config = AutoConfig.for_model("qwen3_5_text", **SIZES, **sizes)
    dense, moe = tmp_path / "dense", tmp_path / "moe"
    AutoModelForCausalLM.from_config(config).save_pretrained(dense)
    upcycle(dense, moe, verify="none")
    for call in (lambda: upcycle(dense, tmp_path / "new"), lambda: verify(dense, moe), lambda: generate(dense, "a")):
        with pytest.raises(SourceError, match="no layer has attention"):
            call()
    assert not (tmp_path / "new").exists()
