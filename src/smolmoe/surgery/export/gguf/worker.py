"""Run by `converter` in a separate process: llama.cpp's converter, with instructions for the vocabulary.

Its files are not modified; the methods that write the vocabulary are replaced in memory. This module cannot import
smolmoe, which is not on sys.path here.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def main(job: Job) -> None:
    """Convert to each type, and print each file's tensor types as one line of JSON."""
    root = Path(job["converter"])
    sys.path[:0] = [str(root), str(root / "gguf-py")]
    converter = importlib.import_module("convert_hf_to_gguf")
    gguf = importlib.import_module("gguf")
    _write_vocabulary(_text_model(converter), job)
    types = {}
    for outtype, out in job["out"].items():
        sys.argv = ["convert_hf_to_gguf.py", job["model"], "--outfile", out, "--outtype", outtype]
        converter.main()
        types[outtype] = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    sys.stdout.write("\n" + json.dumps(types) + "\n")


def _text_model(converter: Any) -> Any:
    """The base class of the language models: in a separate module since the converter was split."""
    try:
        return importlib.import_module("conversion.base").TextModel
    except ModuleNotFoundError:
        return converter.TextModel


def _subclasses(cls: Any) -> list[Any]:
    return [cls, *(found for child in cls.__subclasses__() for found in _subclasses(child))]


def _write_vocabulary(text_model: Any, job: Job) -> None:
    vocabulary = job["vocabulary"]
    if vocabulary["kind"] == "own":
        return
    method = "_set_vocab_gpt2" if vocabulary["kind"] == "bytes" else "_set_vocab_llama_hf"
    package = importlib.util.find_spec("conversion")
    if package is not None:
        for name in job["modules"]:
            importlib.import_module(f"conversion.{name}")

    def set_vocab(self: Any) -> None:
        getattr(self, method)()

    for cls in _subclasses(text_model):
        if "set_vocab" in vars(cls) or cls is text_model:
            cls.set_vocab = set_vocab
    if vocabulary["kind"] == "bytes":
        _name_pre_tokenizer(text_model, vocabulary["pre"])
    else:
        _rank_pieces(vocabulary["scores"])


def _name_pre_tokenizer(text_model: Any, name: str) -> None:
    own = text_model.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(own(self, tokenizer))
        except NotImplementedError:
            return name

    text_model.get_vocab_base_pre = get_vocab_base_pre


def _rank_pieces(scores: dict[str, float]) -> None:
    """The converter gives all pieces the same score, which loses the order of merges."""
    vocab = importlib.import_module("gguf").LlamaHfVocab

    def get_token_score(self: Any, token_id: int) -> float:
        return scores.get(self.tokenizer.convert_ids_to_tokens(token_id), -1e6)

    vocab.get_token_score = get_token_score


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
