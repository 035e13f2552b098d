"""A model's configs as they were before the trainers of transformers and TRL changed them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("config", "generation_config")


class OwnConfig:
    """The current config and generation config of a model, to be saved with it.

    A trainer sets `use_cache`, and the ids of bos, eos and pad to those of the tokenizer. If the pad token is the
    end-of-text token, a model loaded with that config has a `padding_idx`: the embedding of end-of-text is not trained
    any more.

    Args:
        model: of transformers, unwrapped, before a trainer gets it.
    """

    def __init__(self, model: Any):
        self._model = model
        self._own = {name: copy.deepcopy(getattr(model, name, None)) for name in _NAMES}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within, the model has its original configs."""
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
