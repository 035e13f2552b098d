"""Every error a user can cause, typed: the field, its value, the reason, and the fix."""

from __future__ import annotations


class SmolmoeError(Exception):
    """Base of all errors that smolmoe raises on purpose.

    Args:
        message: what is wrong, one sentence.
        field: the option, file or tensor at fault.
        value: its value.
        fix: the nearest thing that works, one sentence. Options are written as Python keywords in backticks, as in
            `overwrite=True`; the command line spells them as its own.
    """

    def __init__(self, message: str, *, field: str | None = None, value: object = None, fix: str | None = None):
        super().__init__(message)
        self.message = message
        self.field = field
        self.value = value
        self.fix = fix

    def __str__(self) -> str:
        where = f"{self.field}={self.value!r}: " if self.field is not None else ""
        return f"{where}{self.message}" + (f" {self.fix}" if self.fix else "")

    def to_json(self) -> dict[str, object]:
        """The error as plain data, for `--json`."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "field": self.field,
            "value": None if self.value is None else str(self.value),
            "fix": self.fix,
        }


class RequestError(SmolmoeError):
    """The request contradicts itself or the source's sizes (K > E, a granularity that does not divide F, ...)."""


class TargetError(SmolmoeError):
    """No such target, or the target cannot express the request exactly."""


class SourceError(SmolmoeError):
    """The source is not a dense decoder-only checkpoint that can be upcycled."""


class CheckpointError(SmolmoeError):
    """Files of a checkpoint are missing, truncated, corrupt, pickled or quantised."""


class HubError(SmolmoeError):
    """A hub id could not be resolved."""


class OutputError(SmolmoeError):
    """The output folder exists, lies inside the source, or does not fit on the disk."""


class DataError(SmolmoeError):
    """A text or data file cannot be read in its format."""


class VerificationError(SmolmoeError):
    """The written files do not satisfy the plan's claim."""


class TrainingError(SmolmoeError):
    """Training cannot continue: a NaN or infinite loss, or a term that trains nothing."""


class EndpointError(SmolmoeError):
    """An HTTP endpoint is down, refuses a request, or does not answer it."""
