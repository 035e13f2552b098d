"""A GGUF file, run by llama.cpp, compared with its source MoE, run by transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smolmoe.moe.loading import load_model, load_tokenizer
from smolmoe.moe.routing import Routing, RoutingCapture, flipped
from smolmoe.results.base import as_json
from smolmoe.results.gguf import Order
from smolmoe.results.verification import Check
from smolmoe.surgery.export.gguf.engine import Engine, Evaluated
from smolmoe.surgery.export.gguf.vocabulary import PROBE
from smolmoe.verification.logits import Comparison, before_first_close_call, largest
from smolmoe.verification.sample import Sample, draw_sample, plain

SEQUENCES, LENGTH = 6, 128
# Two correct float32 programs differ by their order of summation: 1e-5 of the largest logit has been seen.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class GgufMeasured:
    """The file compared with the MoE in float32.

    Attributes:
        text, tokens: the input of both.
        max_abs: largest |difference of logits|; `sure_max_abs`: before any router's first close call (its last
            chosen and first unchosen expert score the same up to rounding); `sure`: the share of these tokens.
        max_logit: largest |logit| of the MoE.
        flips: share of (token, layer) pairs with a different set of experts; `close_flips`: at or after a close call.
        kl, top1: mean KL(MoE || file) in nats, top-1 agreement.
        reference_loss, loss: next-token loss in nats.
        cached_max_abs: largest |difference| of the file's logits, token by token compared with a single pass.
        same_tokens: llama.cpp splits the text into the same tokens.
        nbytes: of the file.
        tokens_per_second: prefill speed of llama.cpp on one thread, on these short sequences.
        checks: the conditions that were checked.
    """

    text: str
    tokens: int
    max_abs: float
    sure_max_abs: float
    sure: float
    max_logit: float
    flips: float
    close_flips: float
    kl: float
    top1: float
    reference_loss: float
    loss: float
    cached_max_abs: float
    same_tokens: bool
    nbytes: int
    tokens_per_second: float
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        return dict(as_json(asdict(self)))


@dataclass(frozen=True)
class Reference:
    """The MoE on text: logits [S, V] and each layer's routing of every sequence, and the text's tokens."""

    sample: Sample
    logits: list[torch.Tensor]
    routing: list[dict[int, Routing]]
    texts: Mapping[str, list[int]]

    @classmethod
    def of(cls, folder: Path, *, seed: int = 0) -> Reference:
        """Load an MoE the standard way and run it in float32."""
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        sample = draw_sample(tokenizer, model.config, None, count=SEQUENCES, length=LENGTH, seed=seed)
        logits, routing = [], []
        with torch.no_grad(), RoutingCapture(model) as capture:
            for sequence in sample.sequences:
                capture.clear()
                logits.append(model(**plain(sequence, "cpu"), use_cache=False).logits[0].float())
                routing.append({layer: capture.routing(layer) for layer in capture.layers})
        texts = {}
        if tokenizer is not None:
            for text in (*(tokenizer.decode(sequence) for sequence in sample.sequences), PROBE):
                texts[text] = list(tokenizer(text)["input_ids"])
        return cls(sample, logits, routing, texts)

    def measure(self, path: Path, *, exact: bool, order: Order | None = None) -> GgufMeasured:
        """Run the file in llama.cpp and compare.

        Args:
            exact: the file is in float32, so its logits must equal the MoE's.
            order: of the file's experts.

        Raises:
            VerificationError: llama.cpp cannot load or run it.
        """
        context = max(len(sequence) for sequence in self.sample.sequences)
        with Engine(path, context=context) as engine:
            found = [engine.evaluate(sequence.tolist()) for sequence in self.sample.sequences]
            speed = engine.tokens / max(engine.seconds, 1e-9)
            shortest = min(self.sample.sequences, key=len)
            whole = found[next(i for i, s in enumerate(self.sample.sequences) if s is shortest)]
            cached = engine.evaluate(shortest.tolist(), at_once=1)
            same = all(engine.tokenize(text) == ids for text, ids in self.texts.items())
        if order is not None:
            for evaluated in (*found, cached):
                for layer, experts in order.experts.items():
                    evaluated.chosen[layer] = torch.tensor(experts)[evaluated.chosen[layer]]
        return self._compare(path, found, _cached_difference(whole, cached), same, speed, exact=exact)

    def _compare(
        self, path: Path, found: list[Evaluated], cached: float, same: bool, speed: float, *, exact: bool
    ) -> GgufMeasured:
        comparison = Comparison()
        sure_tokens, flips, close, sure_worst = 0, 0, 0, 0.0
        for ids, logits, routing, theirs in zip(self.sample.sequences, self.logits, self.routing, found, strict=True):
            comparison.add(logits, theirs.logits, ids)
            ours = [routing[layer] for layer in routing]
            others = [replace(routing[layer], indices=theirs.chosen[layer]) for layer in routing]
            sure = before_first_close_call(ours, others)
            sure_tokens += int(sure.sum())
            sure_worst = max(sure_worst, largest((logits - theirs.logits)[sure]))
            different = torch.stack([flipped(a, b) for a, b in zip(ours, others, strict=True)])
            flips += int(different.sum())
            close += int((different & ~sure).sum())
        pairs = self.sample.tokens * len(self.routing[0])
        measured = GgufMeasured(
            text=self.sample.origin,
            tokens=self.sample.tokens,
            max_abs=comparison.max_abs,
            sure_max_abs=sure_worst,
            sure=sure_tokens / self.sample.tokens,
            max_logit=comparison.max_logit,
            flips=flips / pairs,
            close_flips=close / pairs,
            kl=comparison.kl,
            top1=comparison.top1,
            reference_loss=comparison.reference_loss,
            loss=comparison.loss,
            cached_max_abs=cached,
            same_tokens=same,
            nbytes=path.stat().st_size,
            tokens_per_second=speed,
            checks=(),
        )
        return replace(measured, checks=tuple(_checks(measured, comparison.finite, exact=exact)))


def _cached_difference(whole: Evaluated, cached: Evaluated) -> float:
    """Up to the first token with a different set of experts: after it the outputs legitimately differ."""
    same = torch.ones(len(whole.logits), dtype=torch.bool)
    for layer, indices in whole.chosen.items():
        same &= (indices.sort(1).values == cached.chosen[layer].sort(1).values).all(1)
    alike = (~same).cumsum(0) == 0
    return largest((whole.logits - cached.logits)[alike])


def _checks(measured: GgufMeasured, finite: bool, *, exact: bool) -> list[Check]:
    same = measured.same_tokens
    checks = [
        Check("finite", finite, float(not finite), 0.0, "Every logit is finite."),
        Check("tokens", same, float(not same), 0.0, "llama.cpp produces the same tokens as the MoE's tokenizer."),
    ]
    if exact:
        limit = TOLERANCE * measured.max_logit
        for name, value, meaning in (
            ("logits", measured.sure_max_abs, "In float32 the logits equal the MoE's before any close router call."),
            ("cache", measured.cached_max_abs, "Token-by-token decoding gives the same logits as a single pass."),
        ):
            checks.append(Check(name, value <= limit, value, limit, meaning))
    return checks
