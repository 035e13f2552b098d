"""Loss on held-out documents: the same tokens in the same windows for every model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from smolmoe.core.devices import in_double

if TYPE_CHECKING:
    import torch

    from smolmoe.moe.routing import RoutingCapture

IGNORED = -100
WINDOWS = 16  # at once
LOGITS = 1 << 25  # of one model in a batch, so that a large vocabulary does not fill the memory


@dataclass(frozen=True)
class HeldOut:
    """Windows of held-out documents.

    Attributes:
        windows: token ids; a window predicts all its tokens except the first.
        owners: for each window, the index of its document.
        domains: for each document, its domain.
    """

    windows: tuple[tuple[int, ...], ...]
    owners: tuple[int, ...]
    domains: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return sum(len(window) - 1 for window in self.windows)

    @property
    def document_tokens(self) -> tuple[int, ...]:
        """Predicted tokens of each document."""
        tokens = [0] * len(self.domains)
        for window, owner in zip(self.windows, self.owners, strict=True):
            tokens[owner] += len(window) - 1
        return tuple(tokens)

    @property
    def sha256(self) -> str:
        """Of the windows: equal for the same text and tokenizer."""
        from hashlib import sha256

        return sha256(repr((self.windows, self.owners)).encode()).hexdigest()


@dataclass(frozen=True)
class DocumentLosses:
    """Negative log-likelihood in nats, summed over the tokens of each document; `tokens` counts them.

    `counts` [L, E] are the routers' choices on those tokens, if recorded; `text` is the hash of the windows.
    """

    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    domains: tuple[str, ...]
    counts: torch.Tensor | None = None
    text: str | None = None

    @property
    def loss(self) -> float:
        """Nats per token."""
        return sum(self.nll) / sum(self.tokens)

    @property
    def by_domain(self) -> dict[str, float]:
        """Nats per token in each domain."""
        return {domain: self._part(domain) for domain in sorted(set(self.domains))}

    def _part(self, domain: str) -> float:
        chosen = [index for index, name in enumerate(self.domains) if name == domain]
        return sum(self.nll[index] for index in chosen) / sum(self.tokens[index] for index in chosen)

    def part(self, domain: str | None) -> DocumentLosses:
        """The documents of one domain; None for all."""
        at = [index for index, name in enumerate(self.domains) if domain is None or name == domain]
        nll, tokens = tuple(self.nll[index] for index in at), tuple(self.tokens[index] for index in at)
        return DocumentLosses(nll, tokens, tuple(self.domains[index] for index in at))

    def to_json(self) -> dict[str, Any]:
        return {"loss": self.loss, "by_domain": self.by_domain, "tokens": sum(self.tokens)}

    def documents_json(self) -> dict[str, Any]:
        """Per document, as `from_json` reads it."""
        return {"nll": self.nll, "tokens": self.tokens, "domains": self.domains, "text": self.text}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DocumentLosses:
        found = tuple(values["nll"]), tuple(values["tokens"]), tuple(values["domains"])
        return cls(*found, text=values.get("text"))


def same_text(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two `documents_json` have the same documents and tokens; older files have no hash."""
    texts = {text for text in (a.get("text"), b.get("text")) if text}
    return len(texts) < 2 and all(list(a[key]) == list(b[key]) for key in ("tokens", "domains"))


def cut_windows(
    token_ids: Sequence[Sequence[int]],
    domains: Sequence[str],
    *,
    length: int,
    start: int,
    budget: int,
    per_document: int,
) -> HeldOut:
    """Windows of whole held-out documents, about `budget` tokens of each domain.

    Every document starts with the `start` token, without the documents before it.

    Args:
        token_ids: of each document.
        domains: of each document.
        length: maximum number of tokens that a window predicts.
        start: the token that precedes a document, usually end-of-text.
        budget: tokens to predict per domain; documents are taken in order until it is reached.
        per_document: maximum per document, so that no long document dominates its domain.
    """
    spent = dict.fromkeys(domains, 0)
    windows: list[tuple[int, ...]] = []
    owners: list[int] = []
    kept: list[str] = []
    for ids, domain in zip(token_ids, domains, strict=True):
        if spent[domain] >= budget or not ids:
            continue
        text = [start, *ids[:per_document]]
        cuts = range(0, len(text) - 1, length)
        windows += [tuple(text[cut : cut + length + 1]) for cut in cuts]
        owners += [len(kept)] * len(cuts)
        kept.append(domain)
        spent[domain] += len(text) - 1
    return HeldOut(tuple(windows), tuple(owners), tuple(kept))


def document_losses(
    model: Any,
    held_out: HeldOut,
    *,
    batch: int = WINDOWS,
    capture: RoutingCapture | None = None,
    report: Callable[[int, int], None] | None = None,
) -> DocumentLosses:
    """The loss of a causal language model on each held-out document, in the model's own dtype.

    Windows of similar length share a batch [B, S]. Padding comes after the text, where no causal model sees it, and is
    not counted.

    Args:
        batch: the most windows at once; fewer if the logits of so many would fill the memory.
        capture: of the model's routers, not active; with it the choices of experts are counted too.
        report: called with the number of windows done and their total.
    """
    import torch

    counts: list[torch.Tensor] = []
    nll = [0.0] * len(held_out.domains)
    done, windows = 0, len(held_out.windows)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for chosen, inputs, targets in batches(held_out, at_once(model, held_out, batch), model.device):
            with _counting(capture, targets != IGNORED, counts):
                logits = model(input_ids=inputs, use_cache=False).logits.float()
            sums = in_double(token_losses(logits, targets)).sum(dim=1).tolist()
            for index, total in zip(chosen, sums, strict=True):
                nll[held_out.owners[index]] += total
            done += len(chosen)
            if report is not None:
                report(done, windows)
    model.train(was_training)
    chosen_counts = sum(counts) if counts else None
    tokens = held_out.document_tokens
    return DocumentLosses(tuple(nll), tokens, held_out.domains, chosen_counts, held_out.sha256)  # type: ignore[arg-type]


def windows_at_once(length: int, vocabulary: int, most: int = WINDOWS) -> int:
    """How many windows of `length` tokens share a batch."""
    return max(1, min(most, LOGITS // (length * vocabulary)))


def at_once(model: Any, held_out: HeldOut, most: int = WINDOWS) -> int:
    """How many held-out windows of a model share a batch."""
    longest = max(map(len, held_out.windows), default=1)
    return windows_at_once(longest, model.config.get_text_config().vocab_size, most)


def batches(held_out: HeldOut, size: int, device: Any) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Windows of similar length: their places, inputs and targets [B, S], padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    order = sorted(range(len(held_out.windows)), key=lambda index: len(held_out.windows[index]))
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        windows = [torch.tensor(held_out.windows[index]) for index in chosen]
        inputs = pad_sequence([window[:-1] for window in windows], batch_first=True)
        targets = pad_sequence([window[1:] for window in windows], batch_first=True, padding_value=IGNORED)
        yield chosen, inputs.to(device), targets.to(device)


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats of each token [B, S]; 0 for padding."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")


@contextmanager
def _counting(capture: RoutingCapture | None, keep: torch.Tensor, counts: list[torch.Tensor]) -> Iterator[None]:
    """Add the choices [L, E] made in the block, on the tokens to keep [B, S], to `counts`."""
    if capture is None:
        yield
        return
    import torch

    capture.clear()
    capture.keep = keep.flatten()
    with capture:
        yield
    capture.keep = None
    routings = [capture.routing(layer) for layer in capture.layers]
    capture.clear()
    counts.append(torch.stack([routing.chosen().sum(0) for routing in routings]).cpu())


@dataclass(frozen=True)
class Change:
    """The change of a held-out loss on the same documents.

    Attributes:
        before, after: nats per token.
        low, high: of the 95% interval of the difference; None for a single document.
    """

    before: float
    after: float
    low: float | None
    high: float | None

    @property
    def nats(self) -> float:
        """After minus before: below 0 is better."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """better, worse, or unclear if the interval includes 0."""
        low, high = (self.nats, self.nats) if self.low is None or self.high is None else (self.low, self.high)
        return "better" if high < 0 else "worse" if low > 0 else "unclear"

    @property
    def perplexity_percent(self) -> float:
        """Change in percent of the perplexity before."""
        return 100 * math.expm1(min(self.nats, 700.0))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "nats": self.nats,
            "perplexity_percent": self.perplexity_percent,
            "verdict": self.verdict,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Change:
        return cls(*(values[name] for name in ("before", "after", "low", "high")))

    def __str__(self) -> str:
        ends = "" if self.low is None else f" (95% interval {self.low:+.4f} to {self.high:+.4f})"
        word = {"better": "better", "worse": "WORSE", "unclear": "no difference seen"}[self.verdict]
        return f"{word}: {self.nats:+.4f} nats per token{ends}, perplexity {self.perplexity_percent:+.1f}%"


def change(before: DocumentLosses, after: DocumentLosses) -> Change:
    """The change of the loss on the same documents; the interval is that of `paired_difference`.

    Raises:
        ValueError: the losses are not of the same documents.
    """
    draws = 1000 if len(after.tokens) <= 2000 else 200  # seconds, not minutes, with many documents
    _, low, high = paired_difference(after, before, draws=draws)
    alone = len(after.tokens) < 2
    return Change(before.loss, after.loss, None if alone else low, None if alone else high)


def paired_difference(
    a: DocumentLosses, b: DocumentLosses, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Loss of `a` minus loss of `b` on the same documents, with the 95% interval of a bootstrap over documents.

    Args:
        a, b: losses of two models on the same documents.
        draws: bootstrap samples.

    Returns:
        The difference, and the interval's low and high end, in nats per token. The interval covers documents, not
        seeds.
    """
    value, means = _drawn(a, b, draws, seed)
    means.sort()
    return value, means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def difference_of_differences(
    a: tuple[DocumentLosses, DocumentLosses], b: tuple[DocumentLosses, DocumentLosses], *, draws: int = 1000
) -> tuple[float, float, float]:
    """`paired_difference` of `a` minus that of `b` on other documents; each is resampled separately."""
    (first, drawn), (second, others) = _drawn(*a, draws, 0), _drawn(*b, draws, 1)
    means = sorted(x - y for x, y in zip(drawn, others, strict=True))
    return first - second, means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def _drawn(a: DocumentLosses, b: DocumentLosses, draws: int, seed: int) -> tuple[float, list[float]]:
    """Loss of `a` minus loss of `b`, and the same on resampled documents."""
    if a.tokens != b.tokens:
        raise ValueError("the losses are not of the same documents")
    count = len(a.tokens)
    gaps = [x - y for x, y in zip(a.nll, b.nll, strict=True)]
    rng = random.Random(seed)
    means = []
    for _ in range(draws):
        chosen = rng.choices(range(count), k=count)
        means.append(sum(gaps[index] for index in chosen) / sum(a.tokens[index] for index in chosen))
    return sum(gaps) / sum(a.tokens), means
