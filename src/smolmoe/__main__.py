"""`python -m smolmoe`, and what `torchrun -m smolmoe` starts in every process."""

from __future__ import annotations

from smolmoe.cli import main
from smolmoe.train.distributed import only_main_speaks

if __name__ == "__main__":
    with only_main_speaks():
        main()
