"""Models that answer: generation, the choice of one expert for a prompt, experts loaded on demand or offloaded."""
