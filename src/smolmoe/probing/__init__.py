"""`smolmoe probe`: what the experts of an MoE do, by domain, token and ablation."""
