"""What a kind of stage is: one file in `stages` makes one of these, called `STAGE`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.progress import Progress
from smolmoe.recipe import Recipe

if TYPE_CHECKING:
    from smolmoe.training.estimate import Estimate

Values = dict[str, Any]


@dataclass(frozen=True)
class Foreseen:
    """What is known of a stage before it is run.

    Attributes:
        total, active: parameters of the model that it writes; None where it writes none.
        costs: of a training.
        warnings: what the user should know first.
    """

    total: int | None = None
    active: int | None = None
    costs: Estimate | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What the summary table shows of a stage that is done.

    Attributes:
        loss: held-out loss, nats per token.
        by_domain: the same for each domain.
        found: the result, in a few words.
        text: what is printed below the table.
    """

    loss: float | None = None
    by_domain: Mapping[str, float] = field(default_factory=dict)
    found: str = ""
    text: str = ""


def _foresee_nothing(recipe: Any, folder: Path) -> Foreseen:
    return Foreseen()


def _share_nothing(defaults: Values) -> Values:
    return {}


def _write_nothing() -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Stage:
    """A kind of stage. All functions get the stage's section, parsed, and the stage's folder.

    Attributes:
        recipe: its section; where that has an `out`, it is the stage's folder.
        run: does the work, and returns its result as plain data.
        row: what the summary table shows of that result, and of the folder.
        dry_run: what is known before, from a folder into which the stages before have written models without weights;
            it writes there what later stages look at.
        check: refuses what cannot be done on this machine.
        writes: names, with wildcards, of all that it writes into its folder; other files there are the user's.
        leaves: word -> what `{name.word}` means in its folder; "" is the word of `{name}`.
        shares: what it takes from the pipeline's defaults.
        follows: the trainings that its section names.
        origin: what it begins from, for the table of the dry run.
        collective: all processes run it together; else one does.
    """

    recipe: type[Recipe]
    run: Callable[[Any, Path, Progress], Values]
    row: Callable[[Values, Path], Row]
    dry_run: Callable[[Any, Path], Foreseen] = _foresee_nothing
    check: Callable[[Any], None] = lambda recipe: None
    writes: Callable[[], tuple[str, ...]] = _write_nothing
    leaves: Mapping[str, str] = field(default_factory=dict)
    shares: Callable[[Values], Values] = _share_nothing
    follows: Callable[[Values], list[str]] = lambda values: []
    origin: Callable[[Any], str] = lambda recipe: ""
    collective: bool = False
