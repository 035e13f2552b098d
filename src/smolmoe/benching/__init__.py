"""`smolmoe bench`: how fast a checkpoint computes, what it takes, and what of it computes."""
