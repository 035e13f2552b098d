"""Which rows of a text to train on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from smolmoe.recipe.base import Recipe, Seed, Vocabulary
from smolmoe.recipe.data import SourceRecipe

Score = Literal["entropy", "perplexity", "random"]
Prefer = Literal["high", "middle", "low"]


class SelectRecipe(Recipe):
    """One choice of rows: what they are scored by, in which groups, and how many of each."""

    sources: tuple[SourceRecipe, ...] = Field(description="where the rows come from; all their columns are kept")
    budget: int = Field(1000, ge=1, description="rows or tokens to choose")
    unit: Literal["rows", "tokens"] = Field("rows", description="what the budget counts")
    by: tuple[str, ...] = Field((), description="columns whose values make the groups (default: one group)")
    quota: Literal["even_then_fill", "proportional"] = Field(
        "even_then_fill", description="the same for every group, or by its share of what there is"
    )
    score: Score = Field("entropy", description="token entropy, loss under a model, or a draw")
    prefer: Prefer | None = Field(
        None, description="which end of the scores (default: high for entropy, middle for perplexity)"
    )
    plain: bool = Field(False, description="entropy: in bits, whatever the length; it favours long documents")
    model: str | None = Field(
        None, validate_default=True, description="folder or hub id of the model whose loss scores the rows"
    )
    tokenizer: str | Vocabulary | None = Field(
        None,
        validate_default=True,
        description="folder or hub id; a number learns one of that size from the rows; default: the model's",
    )
    text_weight: float = Field(0.8, ge=0, description="entropy: weight of the text")
    prompt_weight: float = Field(0.2, ge=0, description="entropy: weight of the prompt, where a row has one")
    prompt_column: str | None = Field(
        None, description="column of what the text answers (default: `prompt` where rows have one)"
    )
    min_characters: int = Field(50, ge=0, description="shorter texts are left out")
    max_characters: int | None = Field(None, ge=1, description="longer texts are left out")
    min_prompt_characters: int = Field(10, ge=0, description="rows with a shorter prompt are left out")
    near_duplicates: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Jaccard similarity from which a later text repeats an earlier one; 0 looks for none",
    )
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the documents, by a hash of their text, that is kept out and written apart",
    )
    device: str = Field("cpu", description="where the model computes")
    seed: Seed = Field(0, description="of what is drawn")

    @property
    def preferred(self) -> Prefer:
        """What `prefer` comes to."""
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
