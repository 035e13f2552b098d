"""Recipes: what a user may request. Pydantic models only, without torch; unknown keys are errors."""

from smolmoe.recipe.align import AlignRecipe
from smolmoe.recipe.base import Recipe, parse
from smolmoe.recipe.data import DataRecipe, SourceRecipe
from smolmoe.recipe.pairs import PairsRecipe
from smolmoe.recipe.pipeline import PipelineRecipe, StageRecipe
from smolmoe.recipe.probe import ProbeRecipe
from smolmoe.recipe.select import SelectRecipe
from smolmoe.recipe.train import TrainRecipe
from smolmoe.recipe.upcycle import UpcycleRecipe

__all__ = [
    "AlignRecipe",
    "DataRecipe",
    "PairsRecipe",
    "PipelineRecipe",
    "ProbeRecipe",
    "Recipe",
    "SelectRecipe",
    "SourceRecipe",
    "StageRecipe",
    "TrainRecipe",
    "UpcycleRecipe",
    "parse",
]
