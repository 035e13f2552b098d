"""The whole way in one command: train a small dense model, upcycle it, prove it, train on, report."""

from smolmoe.quickstart.run import QuickstartResult, QuickstartSettings, quickstart

__all__ = ["QuickstartResult", "QuickstartSettings", "quickstart"]
