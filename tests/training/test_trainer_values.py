"""Every field that may stand under `trainer`: what makes no sense there is refused before any work, by its name."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tests.alignment.runs import recipe as alignment
from tests.training.runs import moe_folder, recipe, trainer
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from smolmoe.alignment.arguments import check_trainer as check_alignment
from smolmoe.alignment.arguments import config_class
from smolmoe.errors import RequestError
from smolmoe.pipeline.forecast import forecast
from smolmoe.recipe import AlignRecipe, PipelineRecipe, TrainRecipe, parse
from smolmoe.training.arguments import check_trainer
from smolmoe.training.estimate import estimate

NONSENSE: tuple[Any, ...] = (-5, math.nan, math.inf, 10**30, "nonsense", "", [], {"x": 1}, ["x"], True, 0.5, -0.5, 0)
# Of `NONSENSE`, what a field may hold after all.
FLAG = (True, 0)
PART = (0.5, 10**30)
TAKEN: dict[str, tuple[Any, ...]] = {
    "num_train_epochs": (0.5,),
    "learning_rate": PART,
    "warmup_steps": (*PART, 0),
    "weight_decay": (*PART, 0),
    "adam_beta1": (0.5, 0),
    "adam_beta2": (0.5, 0),
    "adam_epsilon": PART,
    "max_grad_norm": (*PART, 0),
    "label_smoothing_factor": (0.5, 0),
    "neftune_noise_alpha": PART,
    "logging_steps": PART,
    "save_steps": PART,
    "dataloader_num_workers": (0,),
    "report_to": ([],),
    "debug": ("", []),
    "run_name": ("nonsense",),
    "project": ("nonsense",),
    "trackio_static_space_id": (0,),  # no space
    "f_alpha_divergence_coef": (-5, 10**30, 0.5, -0.5, 0),
    "ld_alpha": (0.5, 0),
    "label_smoothing": (0.5, 0),
    "discopop_tau": PART,
    "cpo_alpha": (*PART, 0),
    "alpha": (0,),
    "simpo_gamma": (0,),
    **dict.fromkeys(  # True: not here
        ("fp16", "use_liger_kernel", "tf32", "dataloader_persistent_workers", "activation_offloading"), (0,)
    ),
    **dict.fromkeys(
        (
            *("average_tokens_across_devices", "bf16", "activation_checkpointing", "gradient_checkpointing"),
            *("torch_compile", "logging_first_step", "log_on_each_node", "include_num_input_tokens_seen"),
            *("disable_tqdm", "save_on_each_node", "full_determinism", "dataloader_drop_last"),
            *("dataloader_pin_memory", "ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph"),
            *("disable_dropout", "precompute_ref_log_probs", "use_weighting"),
        ),
        FLAG,
    ),
}
TRAINING = [field.name for field in fields(TrainingArguments)]
OF_METHOD = {
    method: [field.name for field in fields(config_class(method)) if field.name not in TRAINING]
    for method in ("sft", "dpo", "cpo")
}


def refusal(check: Any, recipe_class: Any, values: dict[str, Any]) -> RequestError | None:
    try:
        check(parse(recipe_class, values))
    except RequestError as error:
        return error
    return None


def same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other


# transformers' name of it: the new one is `activation_checkpointing`
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", TRAINING)
def test_what_makes_no_sense_in_a_training(tmp_path: Path, name: str) -> None:
    for value in NONSENSE:
        values = recipe(tmp_path, tmp_path, trainer=trainer(**{name: value}))
        error = refusal(check_trainer, TrainRecipe, values)
        taken = any(same(value, other) for other in TAKEN.get(name, ()))
        assert (error is None) == taken, (value, error)
        if error is not None:
            assert error.field is not None
            assert error.field.startswith(f"trainer.{name}"), (value, error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, names in OF_METHOD.items() for name in names])
def test_what_makes_no_sense_in_an_alignment(tmp_path: Path, method: str, name: str) -> None:
    for value in NONSENSE:
        values = alignment(tmp_path, tmp_path, method, trainer=trainer(**{name: value}))
        error = refusal(check_alignment, AlignRecipe, values)
        taken = any(same(value, other) for other in TAKEN.get(name, ()))
        assert (error is None) == taken, (value, error)
        assert error is None or str(error.field).startswith(f"trainer.{name}"), (value, error)


@pytest.mark.parametrize("name", [optimiser.value for optimiser in OptimizerNames])
def test_every_optimiser_is_there_or_its_package_is_named(tmp_path: Path, name: str) -> None:
    error = refusal(check_trainer, TrainRecipe, recipe(tmp_path, tmp_path, trainer=trainer(optim=name)))
    if name in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"):
        assert error is None
        return
    assert error is not None
    assert error.field == "trainer.optim"
    assert error.message.startswith("transformers refuses it: ")
    assert " is not installed" in error.message


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"max_steps": -5}, "max_steps", "1 or more, or -1"),
        ({"max_steps": 0}, "max_steps", "1 or more, or -1"),
        ({"push_to_hub": True}, "push_to_hub", "smolmoe push"),
        ({"optim": "adamw_8bit"}, "optim", "transformers refuses it: bitsandbytes is not installed"),
        ({"optim": "paged_lion_8bit"}, "optim", "bitsandbytes is not installed"),
        ({"use_liger_kernel": True}, "use_liger_kernel", "liger_kernel is not installed"),
        ({"report_to": "wandb"}, "report_to", "transformers refuses it: wandb is not installed"),
        ({"report_to": ["tensorboard", "azure_ml"]}, "report_to", "azureml is not installed"),
        ({"report_to": "paper"}, "report_to", "paper is not supported"),
        ({"trackio_space_id": "me/space"}, "trackio_space_id", "no effect without report_to: trackio"),
        ({"deepspeed": "ds.json"}, "deepspeed", "parallel: fsdp"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end", "best/"),
        ({"group_by_length": True}, "group_by_length", "unknown key"),
        ({"per_device_eval_batch_size": 4}, "per_device_eval_batch_size", "measured by smolmoe"),
        ({"save_only_model": True}, "save_only_model", "resumed exactly"),
        ({"fp16": True}, "fp16", "needs a GPU"),
        ({"optim_args": "momentum=0.9"}, "optim_args", "adamw_torch_fused takes no momentum"),
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "optim_args", "takes no momentun"),
        ({"optim": "sgd", "optim_args": "momentum=much"}, "optim_args", "transformers refuses it"),
        ({"optim": "sgd", "optim_args": "nesterov"}, "optim_args", "name=value"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type", "transformers refuses it"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type", "min_lr"),
        ({"lr_scheduler_kwargs": {"min_lrr": 0.1}}, "lr_scheduler_kwargs", "min_lrr"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "gradient_checkpointing_kwargs", "router terms"),
        ({"gradient_checkpointing_kwargs": {"reentrant": True}}, "gradient_checkpointing_kwargs", "no such option"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers", "dataloader_num_workers"),
        ({"torch_compile_backend": "inductr"}, "torch_compile_backend", "inductor"),
        ({"torch_compile_mode": "fast"}, "torch_compile_mode", "reduce-overhead"),
        ({"liger_kernel_config": {"rope": True}}, "liger_kernel_config", "use_liger_kernel"),
    ],
)
def test_what_is_at_odds_with_the_engine_or_the_machine(
    tmp_path: Path, values: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        estimate(parse(TrainRecipe, recipe(tmp_path, tmp_path, trainer=trainer(**values))))  # as --dry-run does
    found = caught.value
    assert str(found.field).startswith(f"trainer.{field}")
    assert said in str(found)
    assert found.value is not None


def test_a_pipeline_looks_at_all_its_trainings_before_the_first(tmp_path: Path) -> None:
    first = recipe(tmp_path, tmp_path / "dense")
    del first["out"]
    later = {**first, "model": {"path": "{one}"}, "trainer": trainer(optim="adamw_8bit")}
    stages = [{"name": "one", "train": first}, {"name": "two", "train": later}]
    with pytest.raises(RequestError, match="bitsandbytes is not installed") as caught:
        forecast(parse(PipelineRecipe, {"stages": stages, "out": str(tmp_path / "out")}))
    assert caught.value.field == "stages.two.train.trainer.optim"


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_folder(tmp_path_factory.mktemp("moe") / "moe")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"routing": {"reserved": [4]}}, "routing.reserved"),
        ({"routing": {"reserved": [0, 1, 2, 3]}}, "routing.reserved"),
        ({"routing": {"tie_groups": 2}}, "routing.tie_groups"),
        ({"objective": {"bias_rate": 0.1}}, "objective.bias_rate"),
        ({"guidance": {"experts": {"code": [0, 9]}}}, "guidance.experts"),
        ({"guidance": {"experts": {"code": [0, 1], "prose": [2, 3]}, "layers": [7]}}, "guidance.layers"),
        ({"model": {"attention": "nonsense"}}, "model.attention"),
        ({"model": {"experts": "nonsense"}}, "model.experts"),
    ],
)
def test_a_dry_run_holds_the_recipe_against_the_model(
    tmp_path: Path, moe: Path, changes: dict[str, Any], field: str
) -> None:
    values = recipe(tmp_path, moe)
    for section, content in changes.items():
        values[section] = {**values.get(section, {}), **content}
    with pytest.raises(RequestError) as caught:
        estimate(parse(TrainRecipe, values))
    assert caught.value.field == field


def test_no_logger_is_null_or_none(tmp_path: Path) -> None:
    for value in (None, "none"):
        values = recipe(tmp_path, tmp_path, trainer=trainer(report_to=value))
        assert parse(TrainRecipe, values).trainer["report_to"] == "none"  # transformers refuses None after tokenising


def test_offloading_needs_a_gpu() -> None:
    from smolmoe.training.checks import check_combinations

    given = {"activation_offloading": True}
    with pytest.raises(RequestError, match="offloads from a GPU"):
        check_combinations(given, {"optim": "adamw_torch", **given}, "cpu")
