"""Types and ranges of the fields of transformers' TrainingArguments and of TRL's configs, as data.

Other fields are checked in `training.arguments`, where the installed classes are known. Names and meanings are those
of transformers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetPydanticSchema
from typing_extensions import TypedDict


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


MOST = 2**31 - 1  # steps, sequences, ...: larger numbers are mistakes, and overflow


def _steps(steps: int) -> int:
    if steps > MOST:
        raise ValueError(f"must be at most {MOST:,}")
    if steps != -1 and steps < 1:
        raise ValueError("must be 1 or more, or -1 to train by num_train_epochs")
    return steps


def _pairs(text: str) -> str:
    if any(len(pair.split("=")) != 2 or not all(pair.split("=")) for pair in text.replace(" ", "").split(",")):
        raise ValueError("must be name=value, with commas between several")
    return text


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float | int, BeforeValidator(_number)]  # an integer stays one
Count = Annotated[Int, Field(ge=1, le=MOST)]
Positive = Annotated[Float, Field(gt=0)]
NotNegative = Annotated[Float, Field(ge=0)]
Momentum = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]  # torch refuses an integer here
Share = Annotated[Float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]
# transformers expects the word none; in YAML it is null.
Loggers = Annotated[Name | list[Name], BeforeValidator(lambda value: "none" if value is None else value)]
Level = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]
Options = dict[str, Any] | Annotated[str, Field(pattern=r"^\{")]  # transformers reads JSON in a string


class _Values(TypedDict, total=False):
    """For every trainer: the fields of TrainingArguments that are supported."""

    __pydantic_config__ = ConfigDict(extra="allow", allow_inf_nan=False)  # type: ignore[misc]

    per_device_train_batch_size: Count
    num_train_epochs: Annotated[Float, Field(gt=0, le=1_000_000)]
    max_steps: Annotated[Int, AfterValidator(_steps)]
    learning_rate: Positive
    lr_scheduler_type: Name
    lr_scheduler_kwargs: Options | None
    warmup_steps: NotNegative
    optim: Name
    optim_args: Annotated[str, AfterValidator(_pairs)] | None
    optim_target_modules: Name | Annotated[list[Name], Field(min_length=1)] | None
    weight_decay: NotNegative
    adam_beta1: Momentum
    adam_beta2: Momentum
    adam_epsilon: Positive  # with 0, the update of an expert without tokens would be 0 / 0
    gradient_accumulation_steps: Count
    average_tokens_across_devices: bool
    max_grad_norm: NotNegative
    label_smoothing_factor: Annotated[Float, Field(ge=0, lt=1)]
    bf16: bool
    fp16: bool
    tf32: bool | None
    activation_checkpointing: bool | None
    activation_checkpointing_kwargs: Options | None
    gradient_checkpointing: bool | None
    gradient_checkpointing_kwargs: Options | None
    torch_compile: bool
    torch_compile_backend: Name | None
    torch_compile_mode: Name | None
    use_liger_kernel: bool
    liger_kernel_config: dict[str, bool] | None
    neftune_noise_alpha: Positive | None
    torch_empty_cache_steps: Count | None
    logging_strategy: Literal["no", "steps", "epoch"]
    logging_steps: Positive
    logging_first_step: bool
    log_on_each_node: bool
    log_level: Level
    log_level_replica: Level
    include_num_input_tokens_seen: Literal["no", "all", "non_padding"] | bool
    disable_tqdm: bool | None
    report_to: Loggers
    run_name: Name | None
    project: Name
    trackio_space_id: Name | None
    trackio_bucket_id: Name | None
    trackio_static_space_id: Name | Literal[False] | None
    save_strategy: Literal["no", "steps", "epoch", "best"]
    save_steps: Positive
    save_total_limit: Count | None
    save_on_each_node: bool
    full_determinism: bool
    dataloader_drop_last: bool
    dataloader_num_workers: Annotated[Int, Field(ge=0, le=1024)]
    dataloader_pin_memory: bool
    dataloader_persistent_workers: bool
    dataloader_prefetch_factor: Count | None
    dataloader_multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None
    ddp_find_unused_parameters: bool | None
    ddp_bucket_cap_mb: Count | None
    ddp_broadcast_buffers: bool | None
    ddp_static_graph: bool | None
    ddp_backend: Literal["nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl", "ccl"] | None
    ddp_timeout: Count
    debug: Literal["", "underflow_overflow"] | list[Literal["underflow_overflow"]]


class _AlignValues(_Values, total=False):
    """For an alignment: the additional fields of TRL's SFTConfig, DPOConfig and CPOConfig."""

    __pydantic_config__ = ConfigDict(extra="allow", allow_inf_nan=False)  # type: ignore[misc]

    pad_to_multiple_of: Count | Literal["auto"] | None
    loss_type: Name | Annotated[list[Name], Field(min_length=1)]
    loss_weights: Annotated[list[NotNegative], Field(min_length=1)] | None
    label_smoothing: Annotated[Float, Field(ge=0, le=0.5)]
    disable_dropout: bool
    activation_offloading: bool
    precompute_ref_log_probs: bool
    precompute_ref_batch_size: Count | None
    ld_alpha: Share | None
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
    f_alpha_divergence_coef: Float
    use_weighting: bool
    discopop_tau: Positive
    cpo_alpha: NotNegative
    simpo_gamma: NotNegative
    alpha: Float


# A plain dict for all other code; it has only the given values.
TrainerValues = Annotated[dict[str, Any], GetPydanticSchema(lambda source, handler: handler(_Values))]
AlignTrainerValues = Annotated[dict[str, Any], GetPydanticSchema(lambda source, handler: handler(_AlignValues))]
