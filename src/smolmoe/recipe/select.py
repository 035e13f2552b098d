"""Which rows of a text to train on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from smolmoe.recipe.base import Recipe, Vocabulary
from smolmoe.recipe.data import SourceRecipe
from smolmoe.recipe.words import Device, Seed

Score = Literal["entropy", "perplexity", "random"]
Prefer = Literal["high", "middle", "low"]


class SelectRecipe(Recipe):
    """One choice of rows: score, groups and budget."""

    sources: tuple[SourceRecipe, ...] = Field(description="sources of the rows; all their columns are kept")
    budget: int = Field(1000, ge=1, description="number of rows or tokens to select")
    unit: Literal["rows", "tokens"] = Field("rows", description="unit of the budget: rows or tokens")
    by: tuple[str, ...] = Field((), description="columns whose values define the groups (default: one group)")
    quota: Literal["even_then_fill", "proportional"] = Field(
        "even_then_fill", description="quota of each group: even (then filled up) or proportional to its size"
    )
    score: Score = Field("entropy", description="score: token entropy, perplexity under a model, or random")
    prefer: Prefer | None = Field(
        None, description="preferred scores: high, middle or low (default: high for entropy, middle for perplexity)"
    )
    plain: bool = Field(False, description="entropy in bits, not normalised by length; favours long documents")
    model: str | None = Field(
        None, validate_default=True, description="folder or hub id of the model that computes the perplexity"
    )
    tokenizer: str | Vocabulary | None = Field(
        None,
        validate_default=True,
        description="folder or hub id of the tokenizer, or the vocabulary size to train one (default: the model's)",
    )
    text_weight: float = Field(0.8, ge=0, description="weight of the text in the entropy score")
    prompt_weight: float = Field(0.2, ge=0, description="weight of the prompt in the entropy score, if a row has one")
    prompt_column: str | None = Field(
        None, description="column with the prompt that the text answers (default: prompt, if present)"
    )
    min_characters: int = Field(50, ge=0, description="minimum length of a text, in characters")
    max_characters: int | None = Field(
        None, ge=1, description="maximum length of a text, in characters (default: none)"
    )
    min_prompt_characters: int = Field(10, ge=0, description="minimum length of a prompt, in characters")
    near_duplicates: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Jaccard similarity above which a text is a duplicate; 0 keeps all",
    )
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="fraction of documents held out (by hash of the text) and written to a separate file",
    )
    device: Device = "auto"
    seed: Seed = 0

    @property
    def preferred(self) -> Prefer:
        """`prefer`, or its default for the score."""
        return self.prefer or ("middle" if self.score == "perplexity" else "high")

    @field_validator("sources")
    @classmethod
    def _make_one_file(cls, sources: tuple[SourceRecipe, ...]) -> tuple[SourceRecipe, ...]:
        if not sources:
            raise ValueError("there is nothing to choose from: name at least one source")
        if len({source.text if source.preset is None else "text" for source in sources}) > 1:
            raise ValueError("the texts must be in columns of one name: the rows go into one file")
        if any(source.weight is not None for source in sources):
            raise ValueError("a source's weight says nothing here; quotas are for groups")
        return sources

    @field_validator("by")
    @classmethod
    def _names_no_column_twice(cls, by: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(by)) != len(by):
            raise ValueError("names a column twice")
        return by

    @field_validator("prefer", "plain")
    @classmethod
    def _fits_the_score(cls, value: Any, info: ValidationInfo) -> Any:
        score = info.data.get("score")
        if info.field_name == "prefer" and value is not None and score == "random":
            raise ValueError("a draw has no scores to prefer")
        if info.field_name == "plain" and value and score in ("perplexity", "random"):
            raise ValueError("is a form of the entropy score")
        return value

    @field_validator("model")
    @classmethod
    def _is_there_for_a_perplexity(cls, model: str | None, info: ValidationInfo) -> str | None:
        if model is None and info.data.get("score") == "perplexity":
            raise ValueError("a perplexity is a model's: name one")
        return model

    @field_validator("tokenizer")
    @classmethod
    def _is_there_for_tokens(cls, tokenizer: str | int | None, info: ValidationInfo) -> str | int | None:
        score, model = info.data.get("score"), info.data.get("model")
        if tokenizer is not None and score == "perplexity":
            raise ValueError("a perplexity is of the model's own tokens: leave the tokenizer out")
        if tokenizer is None and model is None and (score == "entropy" or info.data.get("unit") == "tokens"):
            raise ValueError("tokens are a tokenizer's: name one, or a model")
        return tokenizer

    @field_validator("prompt_weight")
    @classmethod
    def _leaves_a_weight(cls, weight: float, info: ValidationInfo) -> float:
        if weight + info.data.get("text_weight", 1.0) <= 0:
            raise ValueError("text_weight and prompt_weight are both 0")
        return weight

    @field_validator("max_characters")
    @classmethod
    def _leaves_a_length(cls, most: int | None, info: ValidationInfo) -> int | None:
        if most is not None and most < info.data.get("min_characters", 0):
            raise ValueError("is below min_characters: nothing is left")
        return most
