"""`smolmoe train`: dense models and MoEs on the Trainer of transformers, with router losses and exact resume."""
