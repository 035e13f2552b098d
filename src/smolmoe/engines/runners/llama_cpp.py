"""llama.cpp's server, through xllamacpp, on the GGUF file that `smolmoe export` writes."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen

VARIABLE = "SMOLMOE_ENGINE_LLAMA_CPP"  # names its Python
MODULE = "xllamacpp"
PACKAGES = ("xllamacpp",)
AT_LEAST = "2026.10"
INSTALL = "pip install xllamacpp"
NOTES = (
    "Keys and values are kept in float32, without flash attention: by default llama.cpp rounds them to float16.",
    "Its server sums probabilities in float32: with 49152 tokens all log-probabilities are shifted by 1e-4.",
    "Its file is written with llama.cpp's converter, in the source archive of llama-cpp-python.",
    "For ernie4_5_moe the converter needs a SentencePiece tokenizer, which these models do not have.",
)
FORCED = 1e4  # added to the logit of the token that the server must choose; it reports those of the model
EVERY = 1 << 30  # so many log-probabilities at most


def load(job: dict[str, Any]) -> Any:
    import xllamacpp

    longest = max(map(len, [*job["sequences"], *job["prompts"]]))
    settings = xllamacpp.CommonParams()
    settings.model.path = job["model"]
    settings.n_ctx = settings.n_batch = settings.n_ubatch = longest + job["new_tokens"]
    settings.n_parallel, settings.warmup = 1, False
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(settings)


def measure(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    def ask(ids: list[int], forced: int, count: int = 1) -> Any:
        """What the server says when it must choose a token after others; None if that token is part of a character."""
        body = {"prompt": ids, "n_predict": 1, "n_probs": count, "temperature": 0, "cache_prompt": True}
        body["logit_bias"] = [[forced, FORCED]]
        with urlopen(Request(f"{model.listening_address}/completion", json.dumps(body).encode())) as answer:
            return next(iter(json.load(answer).get("completion_probabilities", ())), None)

    # A token that is a character by itself, for places where the server would not report the one that is wanted.
    whole = next(token for ids in job["sequences"] for token in ids if ask(ids[:1], token) is not None)

    def score(ids: list[int], token: int) -> float:
        chosen = ask(ids, token)
        if chosen is None:
            chosen = next(one for one in ask(ids, whole, EVERY)["top_logprobs"] if one["id"] == token)
        if chosen["id"] != token:
            raise RuntimeError(f"the server chose token {chosen['id']}, not {token}")
        return float(chosen["logprob"])

    def continued(ids: list[int]) -> list[int]:
        new: list[int] = []
        for _ in range(job["new_tokens"]):
            new.append(ask([*ids, *new], whole)["top_logprobs"][0]["id"])
        return new

    log_probs = [[score(ids[:place], ids[place]) for place in range(1, len(ids))] for ids in job["sequences"]]
    return {"log_probs": log_probs, "tokens": [continued(ids) for ids in job["prompts"]]}
