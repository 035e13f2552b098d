"""`smolmoe sweep`: one training recipe with several token budgets, and the scaling law through the results."""
