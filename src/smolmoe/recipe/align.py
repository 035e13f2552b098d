"""One alignment: model, answers or preferences, and the treatment of the routers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from smolmoe.moe.losses import ROUTER_LOSSES
from smolmoe.recipe.base import Recipe
from smolmoe.recipe.train import ModelRecipe, ObjectiveRecipe, RoutingRecipe
from smolmoe.recipe.trainer import AlignTrainerValues
from smolmoe.recipe.words import Device, Seed

LENGTH = 350  # tokens of an example
BETA = 0.05
LOAD_BALANCE = 0.01  # for `router: balanced`, if the recipe has no balancing term


class AlignDataRecipe(Recipe):
    """Rows with answers (SFT) or with pairs of answers (DPO, CPO)."""

    train: tuple[str, ...] = Field(min_length=1, description="files of rows, or folders of them")
    validation: tuple[str, ...] = Field(
        default=(), description="files to measure on (default: a share of the training rows)"
    )
    held_out: float = Field(
        default=0.05, gt=0, lt=1, description="share of the prompts to measure on, if no validation is given"
    )
    format: (
        Literal[
            "coedit",
            "prompt",
            "messages",
            "sharegpt",
            "pairs",
            "alpaca",
            "dolly",
            "question",
            "mbpp",
            "nemotron",
            "oasst",
        ]
        | None
    ) = Field(default=None, description="format of the rows (default: by the columns of the first row)")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="prompt, context, completion, chosen, rejected, messages, system, tools, references -> your column",
    )
    template: str = Field(default="{prompt}\n", description="template of a plain prompt, which the answer follows")
    chat: bool = Field(default=False, description="plain prompts as user messages, through the chat template")
    chat_template: Path | None = Field(
        default=None, description="file with a Jinja chat template, if the tokenizer has none"
    )
    corrections: str | None = Field(
        default=None, description="CoEdIT file to correct and score (default: held-out rows with references)"
    )
    length: int | None = Field(
        default=None,
        ge=2,
        description=f"maximum number of tokens of prompt and answer (default: {LENGTH}, or the model's positions)",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.template.count("{prompt}") != 1:
            raise ValueError("`template` must have {prompt} in it, once")
        known = (
            *("prompt", "context", "completion", "chosen", "rejected", "messages", "system", "tools", "references"),
        )
        unknown = next((role for role in self.columns if role not in known), None)
        if unknown is not None:
            raise ValueError(f"`columns` has {unknown!r}; it may have {', '.join(known)}")
        return self


class LoraRecipe(Recipe):
    """Low-rank adapters (arXiv 2106.09685) instead of all weights."""

    rank: int = Field(default=16, ge=1, description="rank of each adapter")
    alpha: float = Field(default=32.0, gt=0, description="scale: an adapter's output is multiplied by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapters' inputs")
    targets: tuple[str, ...] | Literal["all-linear"] | None = Field(
        default=None, description="names of linear modules, or all-linear (default: the attention projections)"
    )
    experts: bool = Field(default=False, description="adapters on the stacked experts as well")

    @model_validator(mode="after")
    def _experts_take_no_dropout(self) -> Self:
        if self.experts and self.dropout:
            raise ValueError("adapters on experts take no dropout")
        return self


class AlignRecipe(Recipe):
    """One alignment in one folder."""

    method: Literal["sft", "dpo", "cpo"] = Field(
        description="method: sft, dpo (arXiv 2305.18290) or cpo (arXiv 2401.08417)"
    )
    model: ModelRecipe
    data: AlignDataRecipe
    beta: float | None = Field(default=None, gt=0, description=f"beta of the preference loss (default: {BETA})")
    router: Literal["frozen", "balanced", "free"] | None = Field(
        default=None, description="treatment of the routers: frozen, balanced or free (default: balanced)"
    )
    objective: ObjectiveRecipe = Field(default_factory=ObjectiveRecipe, description="terms added to the loss")
    routing: RoutingRecipe = Field(default_factory=RoutingRecipe, description="router options in training")
    lora: LoraRecipe | None = Field(default=None, description="LoRA adapters instead of full fine-tuning")
    answers: int = Field(
        default=100, ge=0, description="number of held-out prompts answered and scored before and after"
    )
    trainer: AlignTrainerValues = Field(
        default_factory=dict, description="any field of TRL's SFTConfig, DPOConfig or CPOConfig"
    )
    device: Device = "auto"
    seed: Seed = 0
    out: Path = Field(description="output folder of the run")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.model.path is None:
            raise ValueError("`model` must be a path: only a trained model can be aligned")
        if self.method == "sft" and self.beta is not None:
            raise ValueError("`beta` belongs to a preference loss; sft has none")
        names = (*(loss.name for loss in ROUTER_LOSSES), "bias_rate")
        terms = [name for name in names if getattr(self.objective, name)]
        if self.router in ("frozen", "free") and terms:
            raise ValueError(f"`router: {self.router}` and `objective.{terms[0]}` exclude each other")
        if self.objective.preset_bias:
            raise ValueError("`objective.preset_bias` belongs to a training: an aligned model's biases were trained")
        if self.router == "frozen" and self.routing.temperature != 1:
            raise ValueError(
                "`router: frozen` and `routing.temperature`, which is folded into the weights, exclude each other"
            )
        if self.lora is not None and self.routing.noise == "learned":
            raise ValueError("`lora` and `routing.noise: learned` exclude each other: adapters do not keep the noise")
        return self
