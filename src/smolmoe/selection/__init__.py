"""`smolmoe data select`: which rows to train on, by entropy, duplicates and quotas."""
