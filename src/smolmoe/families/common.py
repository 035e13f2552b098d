"""Settings that every Llama-like class has."""

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
# Copied with explicit None: several MoE classes have their own defaults for these (pad and eos in FlexOlmo, bos
# and eos in Mixtral and Granite).
COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    *TOKENS,
    "rope_parameters",
    "attention_dropout",
)
