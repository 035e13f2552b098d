"""Why a request to the hub failed, and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator

from smolmoe.core.words import first_line

# Names of classes, since the hub's client has changed its HTTP library: builtins, httpx, requests.
_NETWORK = frozenset(("TransportError", "ConnectionError", "TimeoutError", "Timeout", "gaierror", "SSLError"))
_ABSENT = frozenset(("OfflineModeIsEnabled", "LocalEntryNotFoundError"))
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def why_not(error: Exception) -> tuple[str, str]:
    """What went wrong (no full stop), and the first step to fix it (a sentence)."""
    said = f"{type(error).__name__}: {first_line(error)}"
    kinds = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
    if kinds & (_NETWORK | _ABSENT):
        offline = (name for name in _OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"))
        if (name := next(offline, None)) is not None:
            return (
                f"{name} is set, so the hub is not contacted, and it is not in the local cache",
                f"Unset {name}.",
            )
        place = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        return f"the hub at {place} cannot be reached ({said})", "Check the network and the proxy."
    return said, "Check the name; for a private or gated one log in with `hf auth login`."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
