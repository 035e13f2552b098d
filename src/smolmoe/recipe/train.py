"""One training run: model, text and objective."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from smolmoe.moe.losses import ROUTER_LOSSES
from smolmoe.recipe.base import Index, Recipe, Vocabulary
from smolmoe.recipe.data import DataRecipe
from smolmoe.recipe.schedule import Schedule, at_least_zero, scheduled, whole
from smolmoe.recipe.trainer import TrainerValues
from smolmoe.recipe.words import Device, Seed


class ModelRecipe(Recipe):
    """A checkpoint to continue training, or the sizes of a model with random weights."""

    path: str | None = Field(default=None, description="local folder or hub id of the model to train")
    revision: str | None = Field(default=None, description="hub revision")
    config: dict[str, Any] | None = Field(
        default=None, description="config of a new model: model_type and any other key"
    )
    attention: str | None = Field(default=None, description="attn_implementation of transformers: eager, sdpa, ...")
    experts: str | None = Field(
        default=None,
        description="experts_implementation: smolmoe, or eager, grouped_mm, ... of transformers "
        "(default: smolmoe on a CPU and on CUDA)",
    )

    @model_validator(mode="after")
    def _is_one_model(self) -> Self:
        if (self.path is None) == (self.config is None):
            raise ValueError("a model is either a path (train on) or a config (from scratch)")
        return self


_WEIGHTS: Any = {loss.name: (float, Field(default=0.0, ge=0, description=loss.description)) for loss in ROUTER_LOSSES}
RouterLosses: Any = create_model("RouterLosses", __base__=Recipe, **_WEIGHTS)


class ObjectiveRecipe(RouterLosses):
    """Losses added to the cross-entropy, by weight, and what else balances the routers."""

    balance_scope: Literal["batch", "micro_batch"] = Field(
        default="batch",
        description="tokens whose load counts: all of the step's (ranks, accumulation so far), or one batch's",
    )
    bias_rate: Annotated[float | Schedule, *scheduled(at_least_zero)] = Field(
        default=0.0, description="step of the loss-free balancing bias, if the class has one; may change by step"
    )
    preset_bias: int = Field(
        default=0,
        ge=0,
        description="training tokens on which the balancing biases are set before the first step, so that loads are "
        "even from there on; 0: they stay as they are",
    )
    beta: float = Field(
        default=1.0, ge=0, description="beta of balanced perplexity, exp(CE) * exp(beta * (1 - balance))"
    )

    @property
    def balancing(self) -> tuple[str, ...]:
        """The losses in use that balance the experts' loads."""
        return tuple(loss.name for loss in ROUTER_LOSSES if loss.balances and getattr(self, loss.name))


class GuidanceRecipe(Recipe):
    """Experts by name: the routers are shown which of them each domain's tokens go to."""

    weight: float = Field(default=1.0, gt=0, description="weight of KL(target ‖ router), averaged over guided layers")
    experts: dict[str, tuple[Index, ...]] | None = Field(
        default=None, description="domain -> its experts (default: by the names in the model's config)"
    )
    free: tuple[Index, ...] = Field(default=(), description="experts of no domain, for whatever token wants them")
    floor: float = Field(default=0.001, ge=0, lt=1, description="probability of each expert that is not the domain's")
    layers: tuple[Index, ...] | None = Field(default=None, description="layers to guide (default: every MoE layer)")
    evenness: float = Field(
        default=0.5, ge=0, le=1, description="0: every token counts alike; 1: every domain, however little text it has"
    )

    @model_validator(mode="after")
    def _experts_have_one_domain(self) -> Self:
        given = [expert for experts in (self.experts or {}).values() for expert in experts] + list(self.free)
        twice = next((expert for expert in given if given.count(expert) > 1), None)
        if twice is not None:
            raise ValueError(f"expert {twice} is given twice; each is one domain's, or free")
        empty = next((name for name, experts in (self.experts or {}).items() if not experts), None)
        if empty is not None:
            raise ValueError(f"the domain {empty!r} has no expert")
        return self


class DistillRecipe(Recipe):
    """A teacher, whose distribution over the next token is a target in addition to the token."""

    cache: str = Field(description="folder of a teacher's targets for this text, from `smolmoe distill cache`")
    weight: float = Field(default=0.5, gt=0, le=1, description="w of (1 - w) CE + w T² KL(teacher ‖ student)")
    temperature: float | None = Field(
        default=None,
        gt=0,
        description="temperature of both distributions; must equal the cache's (default: the cache's)",
    )


class RoutingRecipe(Recipe):
    """Router options that apply in training only."""

    noise: Annotated[float, Field(ge=0)] | Literal["learned"] = Field(
        default=0.0, description="noise on router logits: its standard deviation, or learned"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="router logits are divided by it; folded into the saved weights"
    )
    sample: Annotated[bool | float | Schedule, *scheduled(at_least_zero)] = Field(
        default=False,
        description="choose experts at random by their probabilities instead of the top K; a number is the scale of "
        "the randomness (1: by the probabilities, 0: top K) and may change by step",
    )
    top_k: Annotated[int | Schedule, *scheduled(whole)] | None = Field(
        default=None,
        description="number of experts per token by step, ending with the model's K; gates that are not renormalised "
        "are scaled by K / top_k",
    )
    expert_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="probability that an expert cannot be chosen in a step"
    )
    fp32: bool = Field(
        default=False, description="router logits in float32; how often that changes a choice is measured"
    )
    tie_groups: int = Field(
        default=0, ge=0, description="steps for which the rows of one group's experts share their gradient"
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="learning rate of routers (default: the model's)"
    )
    warmup_steps: int | None = Field(default=None, ge=0, description="warm-up steps of routers (default: the model's)")
    reserved: tuple[Index, ...] = Field(
        default=(), description="experts that may stay idle: left out of balance and alarms"
    )
    freeze: int = Field(default=0, ge=0, description="number of steps during which routers are frozen")


class EvaluationRecipe(Recipe):
    """Held-out measurements during training."""

    every: int | None = Field(default=None, ge=1, description="steps between evaluations (default: ten per run)")
    before: bool = Field(default=True, description="evaluation before the first step, for before and after")
    at: tuple[Index, ...] = Field(default=(), description="additional evaluation steps")
    tokens: int = Field(default=10_000, ge=1, description="held-out tokens per domain")
    per_document: int = Field(default=1024, ge=2, description="maximum number of held-out tokens per document")
    by_document: bool = Field(
        default=False, description="losses of each document at every evaluation, for intervals of a whole curve"
    )


class SamplesRecipe(Recipe):
    """Texts that the trained model continues."""

    prompts: tuple[str, ...] = Field(default=(), description="prompts to continue after training")
    new_tokens: int = Field(default=60, ge=1, description="tokens of each continuation, greedy")


class CarryRecipe(Recipe):
    """Optimiser state carried across the conversion that made the model."""

    optimizer: str = Field(description="run folder (or its checkpoint) that trained the dense source with Adam")
    experts: bool = Field(
        default=True, description="carry-over of the moments of the experts, in addition to those of unchanged weights"
    )


class TrainRecipe(Recipe):
    """One run in one folder."""

    model: ModelRecipe
    tokenizer: str | Vocabulary | None = Field(
        default=None,
        description="folder or hub id of the tokenizer, or the vocabulary size to train one (default: the model's)",
    )
    data: DataRecipe
    objective: ObjectiveRecipe = Field(default_factory=ObjectiveRecipe, description="terms added to the cross-entropy")
    guidance: GuidanceRecipe | None = Field(default=None, description="routing targets of named experts")
    distill: DistillRecipe | None = Field(default=None, description="distillation from a teacher")
    routing: RoutingRecipe = Field(default_factory=RoutingRecipe, description="router options in training")
    trainable: Literal["all", "routers"] = Field(default="all", description="trained parameters: all or routers")
    evaluation: EvaluationRecipe = Field(default_factory=EvaluationRecipe, description="held-out evaluation")
    samples: SamplesRecipe = Field(default_factory=SamplesRecipe, description="prompts to continue after training")
    carry: CarryRecipe | None = Field(default=None, description="optimiser state carried over from the dense model")
    expert_learning_rate: float | None = Field(
        default=None, gt=0, description="learning rate of routed experts (default: the model's)"
    )
    trainer: TrainerValues = Field(default_factory=dict, description="any field of transformers' TrainingArguments")
    parallel: Literal["ddp", "fsdp"] = Field(default="ddp", description="parallelism across processes: ddp or fsdp")
    device: Device = "auto"
    seed: Seed = 0
    out: Path = Field(description="output folder of the run")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.guidance is not None and self.objective.preset_bias:
            raise ValueError(
                "`guidance` and `objective.preset_bias` exclude each other: loads of named experts follow the text"
            )
        return self
