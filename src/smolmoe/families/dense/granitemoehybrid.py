"""Granite 4 without experts: attention and Mamba 2 layers, Granite's multipliers, the FFN named as a shared expert."""

from smolmoe.families.types import DenseFamily, MlpLayout, Slot

FAMILY = DenseFamily(
    model_type="granitemoehybrid",
    examples="Granite 4 Micro, 350M, 1B (dense)",
    mlp=MlpLayout(
        "model.layers", "shared_mlp", Slot("input_linear", 0), Slot("input_linear", 1), Slot("output_linear")
    ),
    targets=("granitemoehybrid",),
    attention_bias="config",
    multipliers=True,
    width_key="shared_intermediate_size",
    plain_width={"num_local_experts": 0},
    by_class=True,
)
