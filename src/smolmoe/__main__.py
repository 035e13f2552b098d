"""`python -m smolmoe`, and what `torchrun -m smolmoe` starts in every process."""

from __future__ import annotations

from smolmoe.cli import main

if __name__ == "__main__":
    main()
