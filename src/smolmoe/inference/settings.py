"""The sampling settings of an answer: what was asked for, else the model's own, else ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from smolmoe.errors import RequestError
from smolmoe.recipe.generation import TEMPERATURE, TOP_P, GenerationRecipe

Origin = Literal["asked", "model", "default"]
# Field -> the value at which it does nothing.
_NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
_IN_WORDS = {"asked": "as asked", "model": "the model's own", "default": "default"}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 always takes the most likely token.
        top_p, top_k, min_p: which tokens are sampled from; 1, 0 and 0 are all.
        repetition_penalty: above 1, repeated tokens become less likely.
        seed: of the sampling.
        origin: field -> "asked", "model" (its generation_config.json) or "default", for all fields but the seed.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    origin: dict[str, Origin]

    def __str__(self) -> str:
        """In words, with the origin of each value."""
        if self.temperature == 0:
            names = ["temperature", "repetition_penalty"]
        else:
            names = list(_NEUTRAL)
        parts: dict[Origin, list[str]] = {}
        for name in names:
            value = getattr(self, name)
            if name == "temperature" or value != _NEUTRAL[name]:
                word = "repetition penalty" if name == "repetition_penalty" else name.replace("_", "-")
                said = "greedy" if name == "temperature" and value == 0 else f"{word} {value:g}"
                parts.setdefault(self.origin[name], []).append(said)
        said = "; ".join(f"{', '.join(values)} ({_IN_WORDS[origin]})" for origin, values in parts.items())
        return said if self.temperature == 0 else f"{said}; seed {self.seed}"

    def options(self) -> dict[str, Any]:
        """For `generate` of transformers."""
        options: dict[str, Any] = {"repetition_penalty": self.repetition_penalty, "do_sample": self.temperature > 0}
        if self.temperature:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            options |= {"min_p": self.min_p} if self.min_p else {}
        return options


def resolve_sampling(recipe: GenerationRecipe, own: Any) -> Sampling:
    """The settings of a request to a model.

    Args:
        own: the model's generation config. Other engines do the same with it: a temperature counts without
            `do_sample`, and `do_sample=false` is greedy.

    Raises:
        RequestError: the model's own value is out of its range.
    """
    stated = {name: value for name in _NEUTRAL if (value := getattr(own, name, None)) is not None}
    if getattr(own, "do_sample", None) is False:
        stated["temperature"] = 0.0
    elif getattr(own, "do_sample", None):
        stated.setdefault("temperature", 1.0)
    _check({name: value for name, value in stated.items() if getattr(recipe, name) is None})
    chosen, origin = dict[str, Any](), dict[str, Origin]()
    samples = any(name in stated for name in ("temperature", "top_p", "top_k", "min_p"))
    defaults = _NEUTRAL if samples else _NEUTRAL | {"temperature": TEMPERATURE, "top_p": TOP_P}
    for name in _NEUTRAL:
        asked = getattr(recipe, name)
        origin[name] = "asked" if asked is not None else "model" if name in stated else "default"
        chosen[name] = asked if asked is not None else stated.get(name, defaults[name])
    return Sampling(**chosen, seed=recipe.seed, origin=origin)


def _check(stated: dict[str, Any]) -> None:
    """Refuse a value of the model's file that the option of that name would refuse."""
    for name, value in stated.items():
        try:
            GenerationRecipe.model_validate({name: value})
        except ValueError:
            raise RequestError(
                f"generation_config.json sets {name} to {value!r}.",
                field=name,
                value=value,
                fix=f"Set `{name}`, or correct the file.",
            ) from None
