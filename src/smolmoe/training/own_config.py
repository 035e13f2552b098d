"""A model's own configs, which the trainers of transformers and TRL change for themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("config", "generation_config")


class OwnConfig:
    """The config and the generation config of a model as they are now, to be saved with it.

    A trainer sets `use_cache`, and the ids of bos, eos and pad to those of the tokenizer. Where the pad token is the
    end-of-text token, a model that is loaded with such a config has a `padding_idx`: the embedding of end-of-text
    learns no more.

    Args:
        model: of transformers, not wrapped by anything, before a trainer has it.
    """

    def __init__(self, model: Any):
        self._model = model
        self._own = {name: copy.deepcopy(getattr(model, name, None)) for name in _NAMES}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within, the model has its own configs."""
        set_by_trainer = {name: getattr(self._model, name, None) for name in _NAMES}
        self._set(self._own)
        try:
            yield
        finally:
            self._set(set_by_trainer)

    def _set(self, configs: dict[str, Any]) -> None:
        for name, config in configs.items():
            if config is not None:
                setattr(self._model, name, config)
