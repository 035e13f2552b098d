"""`smolmoe sweep`: one training recipe at several budgets, and the law through what came out."""
