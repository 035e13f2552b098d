"""Llama and all that share its class: SmolLM, SmolLM2, TinyLlama, Yi, DeepSeek-LLM."""

from smolmoe.families.types import DenseFamily, MlpLayout, Slot

LLAMA_MLP = MlpLayout("model.layers", "mlp", Slot("gate_proj"), Slot("up_proj"), Slot("down_proj"))

FAMILY = DenseFamily(
    model_type="llama",
    examples="SmolLM, SmolLM2, Llama 2 and 3, TinyLlama",
    mlp=LLAMA_MLP,
    targets=("mixtral", "granitemoeshared", "qwen2_moe", "glm4_moe"),
    attention_bias="config",
    mlp_bias="mlp_bias",
)
