"""`smolmoe distill`: a teacher's logits, cached on disk for training."""
