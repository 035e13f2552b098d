"""The whole way in one command: train a small dense model, upcycle it, prove it, train on, report."""

from smolmoe.demo.run import QuickstartResult, quickstart
from smolmoe.demo.settings import QuickstartSettings

__all__ = ["QuickstartResult", "QuickstartSettings", "quickstart"]
