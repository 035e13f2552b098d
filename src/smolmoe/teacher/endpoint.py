"""One request to an OpenAI-compatible endpoint: an answer, or the reason for its absence and whether to retry.

Only this module has the key, and removes it from everything that it returns or raises.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from smolmoe.errors import EndpointError, RequestError
from smolmoe.recipe.teach import TeachRecipe
from smolmoe.teacher.prompts import messages_of

DEFAULT_KEY = "OPENAI_API_KEY"
_NO_KEY = "none"  # the client requires one; endpoints without keys accept any
_SECRET_LENGTH = 8  # shorter "keys" are words such as EMPTY, which may occur in answers
_SAID = 500  # maximum length of an endpoint's message in ours
SILENT = ("timeout", "connection")  # kinds of NoAnswer without any response
_STOPPING = (401, 402, 403, 404)
_AGAIN = (408, 409, 425, 429)
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")
_OF_THE_PROMPT = ("context_length_exceeded", "string_above_max_length", "content_filter", "content_policy_violation")


@dataclass(frozen=True)
class Answer:
    """A model's answer. `logprobs`: for each token [token, bytes, log-probability, [[token, bytes, ...], ...]]."""

    text: str
    model: str
    finish_reason: str | None
    prompt_tokens: int | None
    answer_tokens: int | None
    logprobs: list[list[Any]] | None = None


class NoAnswer(Exception):  # noqa: N818 - what happens, not an error of the program
    """There is no answer to this request.

    Attributes:
        reason: in words; `kind` is a short form.
        again: a retry may help, after `wait` seconds if the endpoint states a wait.
        own: the prompt is the cause; other prompts may succeed.
        prompt_tokens, answer_tokens: its cost.
    """

    def __init__(
        self,
        reason: str,
        *,
        kind: str,
        again: bool = False,
        own: bool = False,
        wait: float | None = None,
        tokens: tuple[int | None, int | None] = (None, None),
    ):
        super().__init__(reason)
        self.reason = reason
        self.kind = kind
        self.again = again
        self.own = own
        self.wait = wait
        self.prompt_tokens, self.answer_tokens = tokens


class Endpoint:
    """Asks one model at one endpoint, without retries of the client."""

    def __init__(self, recipe: TeachRecipe):
        """Raises RequestError if the address or the key cannot be used, or the `openai` package is missing."""
        check_address(recipe.base_url)
        self._key = _key(recipe.api_key_env)
        self._recipe = recipe
        self._openai = client_library()
        self._client = self._openai.AsyncOpenAI(
            api_key=self._key or _NO_KEY,
            base_url=recipe.base_url,
            max_retries=0,
            timeout=recipe.timeout,
            http_client=self._openai.DefaultAsyncHttpxClient(event_hooks={"response": [_stay]}),
        )
        options = {"max_tokens": recipe.max_tokens, "temperature": recipe.temperature, "top_p": recipe.top_p}
        if recipe.top_logprobs is not None:
            options |= {"logprobs": True, "top_logprobs": recipe.top_logprobs}
        self._options = {name: value for name, value in options.items() if value is not None}

    async def ask(self, prompt: str) -> Answer:
        """One request, no retry.

        Raises:
            NoAnswer: with what to do next.
            EndpointError: no other prompt will be answered either.
        """
        problem: NoAnswer | EndpointError
        try:
            # The client's timeout is per received part; a slow stream of parts would never end.
            async with asyncio.timeout(self._recipe.timeout):
                response = await self._client.chat.completions.with_raw_response.create(
                    model=self._recipe.model, messages=messages_of(prompt, self._recipe), **self._options
                )
            body = response.http_response.content
        except (TimeoutError, self._openai.APITimeoutError):
            problem = NoAnswer(f"no answer within {self._recipe.timeout:g} s", kind=SILENT[0], again=True)
        except self._openai.APIStatusError as error:
            problem = self._status(error)
        except _Elsewhere as error:
            problem = self._elsewhere(str(error))
        except self._openai.APIConnectionError as error:
            cause = error.__cause__
            said = f"{type(cause).__name__}: {cause}" if cause else str(error)
            problem = NoAnswer(self._hide(f"no connection, or it was lost ({said})"), kind=SILENT[1], again=True)
            if isinstance(cause, _Elsewhere):  # some versions of the client wrap all errors
                problem = self._elsewhere(str(cause))
        else:
            return self._answer(body)
        # Raised outside the handlers: the client's errors contain the request, whose headers contain the key.
        raise problem

    async def close(self) -> None:
        await self._client.close()

    def _elsewhere(self, place: str) -> EndpointError:
        return EndpointError(
            f"the endpoint redirects to {self._hide(place)}, which would receive the prompts; nothing was sent there.",
            field="base_url",
            value=self._recipe.base_url,
            fix="If the prompts should go there, set `base_url` to its address.",
        )

    def _status(self, error: Any) -> NoAnswer | EndpointError:
        status, code = error.status_code, str(error.code or "")
        said = f"HTTP {status}: {self._hide(_message(error))}"
        if status in _STOPPING or code in _NO_CREDIT or status < 400:
            fixes = {
                401: f"Set {self._recipe.api_key_env} to a key that this endpoint accepts.",
                404: "Check `model`, and that `base_url` ends where the endpoint's API begins (often in /v1).",
            }
            fix = fixes.get(status)
            return EndpointError(
                f"the endpoint refuses the request ({said}).", field="base_url", value=self._recipe.base_url, fix=fix
            )
        kind = f"HTTP {status}"
        if status in _AGAIN or status >= 500:
            return NoAnswer(said, kind=kind, again=True, wait=_retry_after(error.response.headers))
        return NoAnswer(said, kind=kind, own=code in _OF_THE_PROMPT)

    def _answer(self, body: bytes) -> Answer:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            raise NoAnswer("the answer is not JSON", kind="malformed", again=True) from None
        tokens = _tokens(data)
        choice = _first_choice(data)
        if choice is None:
            said = f": {self._hide(json.dumps(data))[:_SAID]}" if isinstance(data, dict) and "error" in data else ""
            raise NoAnswer(f"the answer contains no choice{said}", kind="malformed", again=True, tokens=tokens)
        text, reason = choice["message"].get("content"), choice.get("finish_reason")
        if reason == "content_filter":
            raise NoAnswer("the endpoint filtered the answer", kind="content filter", own=True, tokens=tokens)
        if not isinstance(text, str) or not text.strip():
            raise NoAnswer(f"the answer is empty (finish_reason {reason})", kind="empty", own=True, tokens=tokens)
        return Answer(
            text=self._hide(text),
            model=self._hide(str(data.get("model") or self._recipe.model)),
            finish_reason=None if reason is None else self._hide(str(reason)),
            prompt_tokens=tokens[0],
            answer_tokens=tokens[1],
            logprobs=_logprobs(choice),
        )

    def _hide(self, text: str) -> str:
        """The text without the key, and without halves of surrogate pairs, which UTF-8 cannot encode."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if len(self._key) < _SECRET_LENGTH:
            return text
        return text.replace(self._key, "[key]")


class _Elsewhere(Exception):  # noqa: N818 - a way out of the client
    """The endpoint redirects to another host, the argument."""


async def _stay(response: Any) -> None:
    """Let the client follow redirects only to the same host and port, and never from https to http."""
    if not 300 <= response.status_code < 400 or "location" not in response.headers:
        return
    try:
        here = urlsplit(str(response.request.url))
        there = urlsplit(urljoin(here.geturl(), response.headers["location"]))
        place = f"{there.scheme}://{there.hostname}" + (f":{there.port}" if there.port else "")
        stays = there.hostname == here.hostname and (_port(there) == _port(here) or _is_upgrade(here, there))
    except ValueError:
        place, stays = "an address that is none", False
    if not stays or (here.scheme, there.scheme) == ("https", "http"):
        raise _Elsewhere(place)


def _port(parts: SplitResult) -> int | None:
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _is_upgrade(here: SplitResult, there: SplitResult) -> bool:
    return (here.scheme, _port(here), there.scheme, _port(there)) == ("http", 80, "https", 443)


def check_address(url: str) -> None:
    """Raises RequestError for an invalid URL, or one that may contain a secret."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise RequestError(
            "is not the address of an endpoint.",
            field="base_url",
            value=url.rpartition("@")[2],
            fix="It must begin with http:// or https:// and often ends in /v1.",
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise RequestError(
            "the address is written into reports, so it must not contain a user, password or query.",
            field="base_url",
            value=f"{parts.scheme}://{parts.hostname}/...",
            fix="Put the key into an environment variable and set `api_key_env` to its name.",
        )


def _key(variable: str) -> str:
    """The key; empty if not set, but an explicit variable must be set. Its name is not repeated in errors: it may be
    the key, given by mistake."""
    key = os.environ.get(variable, "").strip()
    if not key and variable != DEFAULT_KEY:
        raise RequestError(
            "no such environment variable, or it is empty.",
            field="api_key_env",
            fix="Give the variable's name, not the key.",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise RequestError(
            "the key in this environment variable has invalid characters.", field="api_key_env", value=variable
        )
    return key


def client_library() -> Any:
    """The `openai` package.

    Raises:
        RequestError: it is not installed.
    """
    try:
        return import_module("openai")
    except ImportError as error:
        raise RequestError(
            "is needed to ask a teacher, but is not installed.",
            field="library",
            value="openai",
            fix="pip install 'smolmoe[teach]'",
        ) from error


def _message(error: Any) -> str:
    """The endpoint's message, shortened."""
    body = error.body
    said = body.get("message") or body.get("detail") or body if isinstance(body, dict) else body
    return " ".join(str(said or error.response.reason_phrase or "no message").split())[:_SAID].rstrip(".")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of a `Retry-After` header, which is a number or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _first_choice(data: Any) -> dict[str, Any] | None:
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    return choices[0] if isinstance(choices[0].get("message"), dict) else None


def _tokens(data: Any) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer, if the endpoint counts them."""
    usage = data.get("usage") if isinstance(data, dict) else None
    if not isinstance(usage, dict):
        return None, None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    prompt, answer = (count if isinstance(count, int) and count >= 0 else None for count in counts)
    return prompt, answer


def _logprobs(choice: dict[str, Any]) -> list[list[Any]] | None:
    """The log-probabilities, compact; None if the response has none in the API's format."""
    try:
        content = choice["logprobs"]["content"]
        return [
            [*_token(entry), [_token(candidate) for candidate in entry["top_logprobs"]]] for entry in content
        ] or None
    except (KeyError, TypeError, ValueError):
        return None


def _token(entry: dict[str, Any]) -> list[Any]:
    nbytes = entry.get("bytes")
    return [str(entry["token"]), None if nbytes is None else [int(byte) for byte in nbytes], float(entry["logprob"])]
