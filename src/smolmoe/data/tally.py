"""Counts of the rows that a source skips or changes, by reason, for messages."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace

from smolmoe.data.text import Document

logger = logging.getLogger(__name__)

NO_TEXT = "no text"
NO_DOMAIN = "no domain"
HALF_PAIR = 'half a surrogate pair, read as "?"'
_SAID = {
    NO_TEXT: "rows without text skipped",
    NO_DOMAIN: "rows without a domain skipped",
    HALF_PAIR: f"texts with {HALF_PAIR}",
}


@dataclass
class Tally:
    """Row counts by outcome, and where each reason first occurred."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def log(self, label: str) -> None:
        """Warn of skipped and changed rows."""
        for reason, count in self.counts.items():
            first = f" (the first: {self.first[reason]})" if reason in self.first else ""
            logger.warning("%s: %s: %d%s.", label, _SAID.get(reason, reason), count, first)


def whole(document: Document, tally: Tally, where: str) -> Document:
    text = whole_text(document.text, tally, where)
    return document if text is document.text else replace(document, text=text)


def whole_text(text: str, tally: Tally, where: str) -> str:
    """The text, with halves of surrogate pairs, which JSON allows but no tokenizer, replaced by question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        tally.add(HALF_PAIR, where)
        return text.encode("utf-8", "replace").decode()
    return text
