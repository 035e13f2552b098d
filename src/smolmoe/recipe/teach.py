"""What to ask a teacher over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from smolmoe.recipe.base import Recipe


class TeachRecipe(Recipe):
    """Prompts, the endpoint that answers them, and how it is asked."""

    prompts: Path = Field(description="file or folder of rows with a column of prompts, or .txt, a prompt a paragraph")
    out: Path = Field(description="folder for the rows, the report and the journal")
    base_url: str = Field(description="of an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1")
    model: str = Field(min_length=1, description="name of the model there")
    system: str | None = Field(None, description="system prompt before every prompt")
    prompt_column: str = Field("prompt", description="column that holds the prompts")
    samples: int = Field(1, ge=1, description="answers to each prompt")
    max_tokens: int | None = Field(None, ge=1, description="tokens of an answer at most")
    temperature: float | None = Field(None, ge=0, description="of the sampling")
    top_p: float | None = Field(None, gt=0, le=1, description="probability mass to sample from")
    top_logprobs: int | None = Field(None, ge=1, description="log-probabilities to take for each token")
    student: str | None = Field(None, description="model whose tokenizer the log-probabilities must fit")
    concurrency: int = Field(8, ge=1, description="requests under way at once, at most")
    requests_per_minute: float | None = Field(None, gt=0, description="requests to send a minute, at most")
    price_in: float | None = Field(None, ge=0, description="price of a million prompt tokens")
    price_out: float | None = Field(None, ge=0, description="price of a million answer tokens")
    max_cost: float | None = Field(None, gt=0, description="stop before the folder has cost more than this")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key")
    timeout: float = Field(120.0, gt=0, description="seconds to wait for one answer")
    retries: int = Field(5, ge=0, description="further tries for a prompt that got no answer")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise ValueError("max_cost needs price_in and price_out, which say what a token costs")
        if self.student is not None and self.top_logprobs is None:
            raise ValueError("student needs top_logprobs: it says whose tokenizer they must fit")
        return self

    def sampling(self) -> dict[str, object]:
        """What the answers follow from, the prompts apart: a resumed job must agree on it."""
        names = {"model", "system", "max_tokens", "temperature", "top_p", "top_logprobs"}
        return self.model_dump(mode="json", include=names)
