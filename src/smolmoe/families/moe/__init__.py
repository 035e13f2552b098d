"""MoE classes, one file each: `TARGET` describes what the class can express and what it calls things."""
