"""Prompts and options for a teacher behind an HTTP endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from smolmoe.recipe.base import Recipe


class TeachRecipe(Recipe):
    """Prompts, the endpoint that answers them, and how it is asked."""

    prompts: Path = Field(description="file or folder with prompts: rows, or .txt with one prompt per paragraph")
    out: Path = Field(description="output folder for rows.jsonl, report.json and the journal")
    base_url: str = Field(description="URL of an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1")
    model: str = Field(min_length=1, description="name of the model at the endpoint")
    system: str | None = Field(None, description="system prompt of every request (default: none)")
    prompt_column: str = Field("prompt", description="column with the prompts")
    samples: int = Field(1, ge=1, description="number of answers per prompt")
    max_tokens: int | None = Field(
        None, ge=1, description="maximum length of an answer, in tokens (default: the endpoint's)"
    )
    temperature: float | None = Field(None, ge=0, description="sampling temperature (default: the endpoint's)")
    top_p: float | None = Field(
        None, gt=0, le=1, description="probability mass of nucleus sampling (default: the endpoint's)"
    )
    top_logprobs: int | None = Field(
        None, ge=1, description="number of log-probabilities stored per token (default: none)"
    )
    student: str | None = Field(
        None, description="folder or hub id of the student whose tokenizer the log-probabilities must match"
    )
    concurrency: int = Field(8, ge=1, description="maximum number of concurrent requests")
    requests_per_minute: float | None = Field(
        None, gt=0, description="maximum number of requests per minute (default: unlimited)"
    )
    price_in: float | None = Field(None, ge=0, description="price per million prompt tokens")
    price_out: float | None = Field(None, ge=0, description="price per million answer tokens")
    max_cost: float | None = Field(
        None, gt=0, description="maximum total cost of the folder, in the currency of the prices"
    )
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable with the API key")
    timeout: float = Field(120.0, gt=0, description="timeout of a request, in seconds")
    retries: int = Field(5, ge=0, description="maximum number of retries per prompt")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise ValueError("max_cost needs price_in and price_out, which say what a token costs")
        if self.student is not None and self.top_logprobs is None:
            raise ValueError("student needs top_logprobs: it says whose tokenizer they must fit")
        return self

    def sampling(self) -> dict[str, object]:
        """The options that decide the answers, without the prompts: a resumed job must have the same."""
        names = {"model", "system", "max_tokens", "temperature", "top_p", "top_logprobs"}
        return self.model_dump(mode="json", include=names)
