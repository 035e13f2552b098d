"""The streaming counts against a plain loop over tokens, on the routers of real classes; types of tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from helpers import VOCABULARY, dense_llama, random_moe, tiny_tokenizer

from smolmoe.errors import SourceError
from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM
from smolmoe.moe.routing import RoutingCapture
from smolmoe.probing.counting import RoutingCounts, Runner, count_routing
from smolmoe.probing.describe import by_domain, coactivation, layer_results, vocabulary
from smolmoe.probing.documents import TaggedDocument, batches
from smolmoe.probing.token_types import TYPES, token_types, types_in_context
from smolmoe.results.probe import Baseline

START, LENGTH = 0, 7


def made_documents() -> list[TaggedDocument]:
    generator = torch.Generator().manual_seed(0)
    return [
        TaggedDocument(
            tuple(torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()), "ab"[index % 2], index
        )
        for index, count in enumerate((3, 20, 7, 6, 13, 1))
    ]


def by_loop(model: Any, documents: list[TaggedDocument], types: torch.Tensor) -> dict[str, Counter[Any]]:
    """Every window alone, every token by itself."""
    found: dict[str, Counter[Any]] = {name: Counter() for name in ("choices", "first", "together", "words", "gates")}
    for document in documents:
        text = [START, *document.ids]
        for cut in range(0, len(text), LENGTH):
            window = torch.tensor([text[cut : cut + LENGTH]])
            kinds = types_in_context(types, window)[0].tolist()
            with RoutingCapture(model) as capture, torch.no_grad():
                model(input_ids=window)
            for place, layer in enumerate(capture.layers):
                routing = capture.routing(layer)
                for at in range(int(cut == 0), window.shape[1]):
                    gates, chosen = routing.weights[at], routing.indices[at].tolist()
                    best = chosen[int(gates.argmax())]
                    where = (place, document.domain, kinds[at])
                    found["first"][*where, best] += 1
                    found["words"][place, int(window[0, at]), best] += 1
                    found["gates"][place] += float(gates.max())
                    for expert in chosen:
                        found["choices"][*where, expert] += 1
                        for other in chosen:
                            found["together"][place, expert, other] += 1
    return found


def generic_gpt2() -> Any:
    torch.manual_seed(0)
    dense = dense_llama().config.to_dict()
    config = SmolMoeConfig(
        text_config=dense,
        moe_layers=[1],
        layers_module="model.layers",
        mlp_module="mlp",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        gated=True,
        hidden_act="silu",
    )
    return SmolMoeForCausalLM(config).eval()


KINDS = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "granitemoeshared", "glm4_moe", "flex_olmo", "generic"]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_a_loop(kind: str) -> None:
    model = generic_gpt2() if kind == "generic" else random_moe(kind)
    types = token_types(tiny_tokenizer(), VOCABULARY)
    documents = made_documents()
    runner = Runner(model)
    counts = count_routing(runner, documents, types, start=START, length=LENGTH, batch_tokens=20)
    expected = by_loop(model, documents, types)

    assert counts.tokens == {"a": 3 + 7 + 13, "b": 20 + 6 + 1}
    assert counts.documents == {"a": 3, "b": 3}
    for name, table in (("choices", counts.choices), ("first", counts.first)):
        for domain in "ab":
            assert table[domain].sum() == sum(n for key, n in expected[name].items() if key[1] == domain)
        for (place, domain, kind_of, expert), n in expected[name].items():
            assert table[domain][place, kind_of, expert] == n
    for (place, a, b), n in expected["together"].items():
        assert counts.together[place, a, b] == n
    for (place, word, expert), n in expected["words"].items():
        assert counts.vocabulary[place, word, expert] == n
    assert counts.vocabulary.sum() == sum(expected["words"].values())
    for place, total in expected["gates"].items():
        assert counts.confidence[place].item() == pytest.approx(total, rel=1e-4)
    one_by_one = torch.stack(counts.kept.choices).sum(0)
    assert torch.equal(one_by_one, by_domain(counts.choices, ["a", "b"]).sum((1, 2)).int())


def test_memory_does_not_grow_with_the_text() -> None:
    model = random_moe("mixtral")
    types = token_types(tiny_tokenizer(), VOCABULARY)
    documents = [
        TaggedDocument((5, 6, 7), "ab"[index % 2], index // 4)  # every text twice
        for index in range(300)
    ]
    counts = count_routing(
        Runner(model), iter(documents), types, start=START, length=64, batch_tokens=512, kept_documents=20
    )
    assert counts.documents == {"a": 150, "b": 150}
    # Of the first 20 of each domain one copy of each text.
    assert len(counts.kept.documents) == 20
    assert len({(document.domain, document.key) for document in counts.kept.documents}) == 20


def test_a_collapsed_router_shows() -> None:
    """All tokens to expert 2 of 4: entropy 0, MaxVio 3, three dead."""
    from smolmoe.probing.counting import Chosen

    documents = [TaggedDocument((5, 6, 7), "a", 0), TaggedDocument((8, 9), "b", 1)]
    types = token_types(tiny_tokenizer(), VOCABULARY)
    counts = RoutingCounts(1, 4, types)
    (batch,) = batches(documents, start=START, length=8, batch_tokens=99)
    chosen = Chosen(torch.full((1, 5, 1), 2), torch.full((1, 5, 1), 0.75))
    counts.add(documents, [(batch, chosen)])
    nothing = {name: [Baseline(0, 0)] for name in ("separation", "information", "contrast")}
    (layer,) = layer_results(counts, [3], ["a", "b"], nothing)
    assert (layer.layer, layer.dead, layer.active_percent) == (3, [0, 1, 3], 25)
    assert (layer.entropy, layer.max_vio, layer.confidence) == (0, 3, pytest.approx(0.75))
    assert (layer.separation, layer.mutual_information, layer.contrast) == (0, 0, pytest.approx(1))


def test_what_capacity_dropped_is_not_counted() -> None:
    from smolmoe.probing.counting import Chosen

    documents = [TaggedDocument((5, 6), "a", 0)]
    counts = RoutingCounts(1, 3, token_types(tiny_tokenizer(), VOCABULARY))
    (batch,) = batches(documents, start=START, length=8, batch_tokens=99)
    counts.add(documents, [(batch, Chosen(torch.tensor([[[0, 1], [2, 1]]]), torch.tensor([[[0.9, 0.0], [0.0, 0.0]]])))])
    assert counts.choices["a"].sum((0, 1)).tolist() == [1, 0, 0]
    assert counts.together.sum() == 1


def test_coactivation_is_olmoes() -> None:
    together = torch.tensor([[[10.0, 4, 1], [4, 5, 1], [1, 1, 0]]])
    assert coactivation(together)[0][0] == [0, pytest.approx(0.4), pytest.approx(0.1)]
    assert coactivation(together)[0][1] == [pytest.approx(0.8), 0, pytest.approx(0.2)]


def test_vocabulary_leaves_rare_special_and_chance_tokens_out() -> None:
    counts = RoutingCounts(1, 2, token_types(tiny_tokenizer(), VOCABULARY))
    counts.vocabulary[0, 70] = torch.tensor([9, 1])
    counts.vocabulary[0, 71] = torch.tensor([10, 20])
    counts.vocabulary[0, 72] = torch.tensor([0, 9])  # nine times
    counts.vocabulary[0, 0] = torch.tensor([50, 0])  # end of text
    found = vocabulary(counts, tiny_tokenizer())
    assert found.specialisation == [pytest.approx((9 + 20) / 40)]
    assert [(token.share, token.count) for token in found.top[0][0]] == [(pytest.approx(0.9), 10)]
    assert found.top[0][1] == []  # 20 of 30, where it gets 21 of 40 of all tokens: by chance


def test_types_of_tokens() -> None:
    tokenizer = tiny_tokenizer()
    types = token_types(tokenizer, VOCABULARY + 5)

    def kinds(text: str) -> list[str]:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        return [TYPES[kind] for kind in types_in_context(types, ids)[0].tolist()]

    assert kinds("9") == ["number"]
    assert kinds("(") == ["punctuation"]
    assert kinds("\n") == ["whitespace"]
    assert "word start" in kinds(" the")
    assert kinds("x\ny") == ["word continuation", "whitespace", "word start"]
    assert TYPES[types[tokenizer.eos_token_id]] == "special"
    assert TYPES[types[-1]] == "special"  # no such token


def test_spaces_of_other_tokenizers_start_words() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0, "▁cat": 1, "cat": 2, "▁7": 3, "▁": 4}
    inner = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    assert [TYPES[kind] for kind in token_types(tokenizer, 5).tolist()] == [
        "special",
        "word start",
        "word continuation",
        "number",
        "whitespace",
    ]


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(SourceError, match="dense"):
        Runner(dense_llama())
