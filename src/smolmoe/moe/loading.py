"""A checkpoint folder as a transformers model: stock classes or our generic one, without remote code.

Tensors go through transformers' own renaming and conversion, never through the tables that wrote the files, so that
measurements on the loaded model are valid for everyone who loads it with transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smolmoe.core.checkpoint import FLOAT_DTYPES, READABLE, Checkpoint, open_checkpoint
from smolmoe.core.files import expanded
from smolmoe.core.hub_access import why_not
from smolmoe.core.links import check_files
from smolmoe.core.model_code import NAMING_CODE
from smolmoe.core.model_config import check_counts, read_config
from smolmoe.core.tensor_names import LEFTOVERS, explain_names
from smolmoe.core.tied_head import has_own_head
from smolmoe.core.vocabulary import within_vocabulary
from smolmoe.core.words import first_line
from smolmoe.errors import CheckpointError, HubError, SmolmoeError, SourceError

GENERIC_TYPE = "smolmoe"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def load_config(folder: Path, *, as_files: bool = True) -> Any:
    """The folder's config, as a transformers object.

    Args:
        as_files: untie an output head that has separate weights in the files, as transformers does when it loads them.

    Raises:
        SourceError: an architecture that neither transformers nor smolmoe has, or a config that does not fit it.
    """
    from transformers import AutoConfig

    check_files(folder, field="model")
    try:
        if _model_type(folder) == GENERIC_TYPE:
            from smolmoe.moe.generic import SmolMoeConfig

            config = SmolMoeConfig.from_pretrained(folder)
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for key in NAMING_CODE:  # or saving the model would propagate references to custom code
            config.__dict__.pop(key, None)
    except SourceError:
        raise
    except Exception as error:  # every class checks its settings in its own way
        raise SourceError(
            f"the config cannot be used: {first_line(error)}", field="config.json", value=str(folder)
        ) from error
    if as_files and getattr(config, "tie_word_embeddings", False):
        # Else whatever goes by the config would tie the head again, and save a config that is not so.
        with suppress(SmolmoeError):  # the code that reads the weights reports the problem
            if has_own_head(open_checkpoint(folder)):
                for part in (config, getattr(config, "text_config", None)):
                    if part is not None:
                        part.tie_word_embeddings = False
    return config


def _model_type(folder: Path) -> Any:
    return read_config(folder, "model").get("model_type") if (folder / "config.json").is_file() else None


def causal_lm_class(config: Any) -> Any:
    """The class that runs this config.

    Raises:
        SourceError: transformers has no causal language model for it.
    """
    if config.model_type == GENERIC_TYPE:
        from smolmoe.moe.generic import SmolMoeForCausalLM

        return SmolMoeForCausalLM
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise SourceError(
            "transformers has no causal language model for it.", field="model_type", value=config.model_type
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def load_tokenizer(folder: Path, *, alone: bool = False) -> Any | None:
    """The folder's tokenizer, or None if it has no tokenizer.

    Args:
        alone: for another model than the folder's, whose vocabulary then is no limit (see `within_vocabulary`).

    Raises:
        SourceError: its files cannot be read, or are links out of the folder.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    check_files(folder, field="tokenizer")
    # The dense model inside determines the tokenizer class of our generic model.
    is_generic = _model_type(folder) == GENERIC_TYPE
    options = {"config": load_config(folder).get_text_config()} if is_generic else {}
    try:
        tokenizer = _without_code(AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options))
    except Exception as error:  # the tokenizers library raises bare Exception on a corrupt file
        raise SourceError(
            f"the tokenizer cannot be read: {first_line(error)}", field="tokenizer", value=str(folder)
        ) from error
    return tokenizer if alone else within_vocabulary(tokenizer, _vocabulary(folder))


def _vocabulary(folder: Path) -> int | None:
    """V of the model in a folder; None without a model."""
    if not (folder / "config.json").is_file():
        return None
    config = read_config(folder, "model")
    for settings in (config.get("text_config"), config):
        if isinstance(settings, dict) and isinstance(settings.get("vocab_size"), int):
            return int(settings["vocab_size"])
    return getattr(load_config(folder).get_text_config(), "vocab_size", None)  # what its class has by default


def _without_code(tokenizer: Any) -> Any:
    tokenizer.init_kwargs.pop("auto_map", None)  # or saving it would propagate references to custom code
    return tokenizer


def find_tokenizer(name: str, field: str = "tokenizer") -> Any:
    """The tokenizer of a local folder, or of a hub id where there is no such folder.

    Raises:
        SourceError: the folder has no readable tokenizer; HubError: the hub does not provide it.
    """
    folder = expanded(name)
    if folder.is_dir():
        found = load_tokenizer(folder, alone=True)
        if found is None:
            raise SourceError("the folder has no tokenizer files.", field=field, value=name)
        return found
    from transformers import AutoTokenizer

    try:
        return _without_code(AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    except Exception as error:  # the hub client raises many kinds; each means that the tokenizer cannot be had
        reason, fix = why_not(error)
        raise HubError(
            f"no such folder, and not available from the hub: {reason}.",
            field=field,
            value=name,
            fix=f"{fix} Or use a local folder.",
        ) from error


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    own: bool = False,
    finite: bool = True,
) -> Any:
    """The whole model in memory, in evaluation mode, by `from_pretrained`.

    Args:
        finite: reject weights that are NaN or infinite.
        own: copy the weights into separate memory. On the CPU transformers leaves them in the checkpoint's mapped
            files, and what has been read of those counts as resident for as long as one tensor needs the file, also
            what was only read to be stacked with others.

    Raises:
        SourceError: no such model, or one that transformers cannot run.
        CheckpointError: missing, unexpected or misshapen tensors, about which transformers would only warn; NaN.
    """
    skeleton = Skeleton(folder, dtype=dtype)
    if finite:
        skeleton.check_finite()
    config = load_config(skeleton.folder)
    with no_progress_bar():
        model = causal_lm_class(config).from_pretrained(skeleton.folder, config=config, dtype=dtype)
    _avoid_refused_products(model, dtype)
    model.to(device)
    if own and model.device.type == "cpu":
        for tensor in (*model.parameters(), *model.buffers()):  # tied ones are one
            tensor.data = tensor.data.clone()
    return model.eval()


class Skeleton:
    """A model on the meta device, and its checkpoint to fill it from, part by part.

    Making one reads no weights, but renames and converts every tensor's shape, so that whatever does not fit is found
    at once. Buffers that no checkpoint holds (rotary frequencies) are real from the start.

    Args:
        finite: refuse weights that are NaN or infinite when they are read; else they are only counted.

    Attributes:
        model: the transformers model, its parameters on meta.
        folder, config, dtype: of the checkpoint; `dtype` is that of the parameters.
        names: each tensor's name on disk -> the parameter it is (a part of), as transformers maps it.
        missing: parameters that no file holds: those tied to another one.

    Raises:
        SourceError: no such model, or one that transformers cannot run.
        CheckpointError: missing, unexpected or misshapen tensors, each by name.
    """

    def __init__(self, folder: str | Path, *, dtype: torch.dtype = torch.float32, finite: bool = True):
        from accelerate import init_empty_weights
        from transformers.conversion_mapping import get_model_conversion_mapping

        self._checkpoint: Checkpoint = open_checkpoint(folder, field="model")
        self.folder = self._checkpoint.folder
        self.dtype = dtype
        self._finite = finite
        self._scanned: set[str] = set()
        self._not_finite: dict[str, int] = {}
        self.config = load_config(self.folder)
        kind = causal_lm_class(self.config)
        check_counts(self.config.to_dict())
        check_counts(self.config.get_text_config().to_dict())
        try:
            with init_empty_weights(include_buffers=False):
                self.model = kind._from_config(self.config, dtype=dtype)
        except Exception as error:  # model code may raise anything; the cause is this config
            raise SourceError(
                f"no {kind.__name__} can be built from the config ({type(error).__name__}: {first_line(error)}).",
                field="config.json",
                value=str(self.folder),
            ) from error
        self.model.eval()
        _avoid_refused_products(self.model, dtype)
        self._mapping = get_model_conversion_mapping(self.model)
        self.names = names_in_class(self.model, self._checkpoint.tensors)
        self.missing: set[str] = self._dry_run()

    def fill(
        self,
        names: Iterable[str],
        *,
        device: str | torch.device = "cpu",
        stored_dtype: torch.dtype | None = None,
    ) -> None:
        """Load the tensors of these names on disk into the model.

        Args:
            stored_dtype: round to this dtype before casting to the model's own.
        """
        self._convert({name: _OnDisk(partial(self._read, name, stored_dtype)) for name in names}, device)

    def _read(self, name: str, stored_dtype: torch.dtype | None) -> torch.Tensor:
        tensor = self._checkpoint.read(name, finite=self._finite)
        if not self._finite and name not in self._scanned:
            self._scanned.add(name)
            if count := self._checkpoint.count_not_finite(tensor, name):
                self._not_finite[name] = count
        rounds = stored_dtype is not None and tensor.is_floating_point()
        return tensor.to(stored_dtype) if rounds else tensor

    def not_finite_read(self) -> dict[str, str]:
        """`not_finite`, of the tensors that `fill` has read so far: they are not read again."""
        taken = set(self._taken())
        return {name: self._describe(name, count) for name, count in self._not_finite.items() if name in taken}

    def not_finite(self) -> dict[str, str]:
        """Tensors on disk, of those that the model takes, with NaN or infinity, and how many of which file in words."""
        found = self._checkpoint.not_finite(self._taken())
        return {name: self._describe(name, count) for name, count in found.items()}

    def _describe(self, name: str, count: int) -> str:
        return self._checkpoint.describe_not_finite(name, count)

    def check_finite(self) -> None:
        """Check that the values the model loads are finite.

        Raises:
            CheckpointError: naming the tensor.
        """
        self._checkpoint.check_finite(self._taken())

    def _taken(self) -> list[str]:
        """Without what old checkpoints carry and no class loads: masks of minus infinity, for example."""
        known = self.model.state_dict()
        return [disk for disk, name in self.names.items() if name in known]

    def stored_dtype(self) -> torch.dtype:
        """The dtype that most of the checkpoint's numbers are stored in."""
        sizes: dict[str, int] = {}
        for name in self.names:
            info = self._checkpoint.tensors[name]
            if info.dtype in FLOAT_DTYPES:
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
        return getattr(torch, FLOAT_DTYPES[max(sizes, key=lambda code: sizes[code])])

    def _dry_run(self) -> set[str]:
        on_meta = {}
        known = self.model.state_dict()
        for name, info in self._checkpoint.tensors.items():
            own = known.get(self.names[name])
            if info.dtype not in FLOAT_DTYPES and own is not None and own.is_floating_point():
                raise CheckpointError(
                    f"stored as {info.dtype}: quantised weights are not loaded.", field="tensor", value=name
                )
            dtype = getattr(torch, READABLE.get(info.dtype, "float32"))
            on_meta[name] = torch.empty(info.shape, dtype=dtype, device="meta")
        buffers = dict(self.model.named_buffers())
        info = self._convert(on_meta, "meta")
        for name, buffer in buffers.items():  # the dry run put those that are in the files on meta
            _set_tensor(self.model, name, buffer)
        # Missing is only what nothing is tied to: names that transformers would quietly initialise are missing too.
        missing = set(info.missing_keys)
        self.model._adjust_missing_and_unexpected_keys(info)
        tied = self.model.all_tied_weights_keys
        absent = {name for name in missing if name not in tied and name not in tied.values()}
        absent |= {source for name, source in tied.items() if name in missing and source in missing}
        wrong = [_shape_problem(*entry) for entry in info.mismatched_keys]
        wrong += [f"{name} (its parts do not fit together)" for name in info.conversion_errors]
        absent -= set(info.conversion_errors)
        unexpected = {n for n in info.unexpected_keys if n not in buffers and not f".{n}".endswith(LEFTOVERS)}
        expected = {name for name, _ in self.model.named_parameters()} - {*tied}
        if (absent or unexpected) and (found := explain_names(expected, self._checkpoint.tensors)):
            raise CheckpointError(found[0], field="weights", value=str(self.folder), fix=found[1])
        _refuse(self.folder, absent=absent, unexpected=unexpected, wrong=wrong)
        return missing

    def _convert(self, tensors: dict[str, Any], device: str | torch.device) -> Any:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        plan = LoadStateDictConfig(
            device_map={"": device},
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            weight_mapping=self._mapping,
        )
        with no_progress_bar():
            info, _ = convert_and_load_state_dict_in_model(self.model, tensors, plan)
        return info


def _avoid_refused_products(model: Any, dtype: torch.dtype) -> None:
    """Let transformers loop over experts whose sizes its default, a grouped product, does not take."""
    from smolmoe.moe.kernels.register import is_aligned

    stacks = [p for name, p in model.named_parameters() if p.ndim == 3 and name.endswith(".experts.down_proj")]
    if all(is_aligned(stack, dtype) for stack in stacks) or not model._can_set_experts_implementation():
        return
    if model.config.get_text_config()._experts_implementation == "grouped_mm":
        model.set_experts_implementation("eager")


def names_in_class(model: Any, on_disk: Iterable[str]) -> dict[str, str]:
    """Each tensor's name on disk -> the parameter it is (a part of), as transformers maps it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    known, mapping = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    names = {}
    for disk in on_disk:
        name, _ = rename_source_key(disk, renamings, converters, model.base_model_prefix, known)
        names[disk] = disk if name not in known and disk in known else name
    return names


class _OnDisk:
    """What transformers takes for a lazily read tensor: indexing it reads it."""

    def __init__(self, read: Callable[[], torch.Tensor]):
        self._read = read

    def __getitem__(self, _: Any) -> torch.Tensor:
        return self._read()


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Loading layer by layer would draw a bar for each layer."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _set_tensor(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, key = name.rpartition(".")
    setattr(model.get_submodule(path), key, tensor)


def _refuse(folder: Path, *, absent: Collection[str], unexpected: Collection[str], wrong: Collection[str]) -> None:
    problems = {"missing": absent, "not in the model": unexpected, "with a different shape": wrong}
    found = [f"{problem}: {_listed(names)}" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"the tensors do not fit the config; {'; '.join(found)}.",
            field="weights",
            value=str(folder),
            fix="Check that config.json belongs to these weights, or write or download the checkpoint again.",
        )


def _listed(names: Collection[str], most: int = 8) -> str:
    shown = ", ".join(sorted(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _shape_problem(name: str, found: Iterable[int], expected: Iterable[int]) -> str:
    return f"{name} ({list(found)}, the config says {list(expected)})"
