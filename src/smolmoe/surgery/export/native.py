"""Export an MoE as another, equivalent MoE class: which bytes of which file become which tensor.

Router rows, experts and everything outside the MoE are copied under their new names. Factors without a setting in the
new class go into down projections: a shared expert behind a zero gate has weight one half, GLM's gates are scaled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from smolmoe.core.claim import Claim
from smolmoe.families import ExpertNames, MoeTarget
from smolmoe.families.adapt import Adaptation, added, changed, kept
from smolmoe.families.fit import GENERIC, adaptation
from smolmoe.surgery.claim import ROUNDING
from smolmoe.surgery.experts.moe_files import Ffn, MoeFiles, MoeLayer
from smolmoe.surgery.experts.subset import SOURCE, Program
from smolmoe.surgery.export.native_forms import Subject, check_target, rounds, settings_of, sizes_as, subject_of
from smolmoe.surgery.tensors.program import Block, OutTensor, Read, Role, kept_block

# Settings that do not affect inference, and that any MoE class may have.
_CARRIED = ("expert_names", "expert_layers", "router_aux_loss_coef")


def native_export(files: MoeFiles, to: str) -> tuple[Program, Claim]:
    """The program that writes an MoE as another class, and the claim for the result relative to the MoE.

    Args:
        files: the MoE.
        to: a key of `smolmoe.families.MOE_TARGETS`.

    Raises:
        TargetError: the class cannot compute the same function; states why, and which classes can.
        SourceError: a config that its class cannot load, or layers of unequal widths.
    """
    subject = subject_of(files)
    target = check_target(to, subject)
    export = _Export(subject, target)
    tensors = tuple(export.tensors())
    return Program(_config(subject, target), tensors, {SOURCE: files.parts}), _claim(export)


def _config(subject: Subject, target: MoeTarget) -> dict[str, Any]:
    files = subject.files
    config: dict[str, Any] = {
        "architectures": [target.architecture],
        "model_type": "smolmoe" if target.name == GENERIC else target.name,
        "dtype": subject.form.config.get("dtype"),
        "transformers_version": version("transformers"),
        "output_router_logits": False,
    }
    return config | settings_of(target, subject) | {key: files.config[key] for key in _CARRIED if key in files.config}


def _claim(export: _Export) -> Claim:
    files, spec = export.subject.files, export.subject.spec
    dtypes = {files.parts.dtype(layer.experts[0]["down"]) for layer in files.layers.values()} & set(ROUNDING)
    if dtypes and any(rounds(scale) for scale in (export.routed_scale, export.shared_scale)):
        error = max(ROUNDING[dtype] for dtype in dtypes)
        return Claim(
            "rounded",
            f"The scale of the gates goes into the down projections, which are rounded to {', '.join(sorted(dtypes))} "
            "again.",
            granularity=files.granularity,
            predicted_ffn_error=tuple(error if index in files.layers else None for index in range(spec.layers)),
        )
    reason = "The same router rows choose the same experts with the same gates."
    return Claim("exact", reason + export.said, granularity=files.granularity)


@dataclass(frozen=True)
class _Export:
    subject: Subject
    target: MoeTarget

    @property
    def files(self) -> MoeFiles:
        return self.subject.files

    @property
    def routed_scale(self) -> float:
        has_setting = "routed_scaling_factor" in self.target.config(self.subject.spec, self.subject.sizes)
        return 1.0 if has_setting else self.subject.gates.scale

    @property
    def shared_scale(self) -> float:
        """The factor on the shared expert's down projection: a zero gate means one half."""
        if self.subject.gates.shared == "none":
            return 1.0
        before = self.files.shared_scale * (0.5 if self.subject.gates.shared == "half" else 1.0)
        return before if not self.target.shared_gated or self.subject.gates.shared == "gated" else 2 * before

    @property
    def zero_width(self) -> int:
        """Width of the zero shared expert, if the class requires one and the source has none; otherwise 0."""
        if self.subject.gates.shared != "none":
            return 0
        return sizes_as(self.target, self.subject).shared_width

    @property
    def said(self) -> str:
        """The factors applied to the weights, and the tensors added."""
        factors = {"shared": self.shared_scale, "routed": self.routed_scale}
        said = [
            f" The {which} down projections are multiplied by {scale:g}."
            for which, scale in factors.items()
            if scale != 1
        ]
        if self.zero_width:
            said.append(
                f" The class requires a shared expert: one of width {self.zero_width} is added whose weights are all "
                "zero; its output is zero and stays zero in training."
            )
        return "".join((*said, *(f" {note}" for note in self._adaptation.notes)))

    def tensors(self) -> Iterator[OutTensor]:
        """The result's tensors, in the order of the MoE's."""
        outside = self._outside()
        for part in self.files.in_order():
            if isinstance(part, str):
                yield from outside.pop(part, ())
            else:
                yield from self._layer(part)

    # -- outside the MoE ---------------------------------------------------------------------------------------------

    def _outside(self) -> dict[str, list[OutTensor]]:
        """The tensors outside the MoE, by the first of the files' tensors that each is made from."""
        names = {self._plain(name): name for name in self.files.in_order() if isinstance(name, str)}
        shapes = {
            plain: self.files.parts.tensors[name].shape
            for plain, name in names.items()
            if not plain.endswith(self.subject.form.dropped) and not self._is_beyond(plain)
        }
        biases = [added(f"self_attn.{name}.weight", f"self_attn.{name}.bias") for name in self.subject.form.zero_biases]
        found: dict[str, list[OutTensor]] = {}
        for plain, piece in changed(kept(shapes), [*biases, *self._adaptation.changes]).items():
            name = names[piece.source]
            block = kept_block(piece, (Read(SOURCE, name),))
            role: Role = "new" if piece.filled else "kept"
            out = f"lm.{plain}" if self.target.name == GENERIC else plain
            found.setdefault(name, []).append(self._out(out, block, role=role, dtype=self.files.parts.dtype(name)))
        return found

    @property
    def _adaptation(self) -> Adaptation:
        return adaptation(self.subject.spec, self.target, sizes_as(self.target, self.subject))

    def _plain(self, name: str) -> str:
        return name.removeprefix("lm.") if self.files.kind == GENERIC else name

    def _is_beyond(self, plain: str) -> bool:
        """An extra multi-token prediction layer; the class does not load it either."""
        prefix = f"{self.subject.spec.mlp.layers}."
        return plain.startswith(prefix) and int(plain[len(prefix) :].split(".")[0]) >= self.subject.spec.layers

    # -- the MoE -------------------------------------------------------------------------------------------------------

    def _layer(self, index: int) -> Iterator[OutTensor]:
        layer, names = self.files.layers[index], self.target.names
        mlp = self.subject.spec.mlp
        inside = f"{mlp.module}." if self.target.name == GENERIC else ""
        stem = f"{'lm.' if self.target.name == GENERIC else ''}{mlp.layers}.{index}.{inside}"
        dtype = self.files.parts.dtype(layer.router)
        yield self._out(stem + names.router, self._block(layer.router), role="router", dtype=dtype)
        if names.selection_bias is not None:
            name, count = stem + names.selection_bias, self.files.experts
            shape = (1, count) if names.selection_bias_row else (count,)
            yield OutTensor(name, name, (), shape, "float32", "router", (self._bias(layer),))
        yield from self._experts(stem, layer)
        if layer.shared and names.shared is not None:
            yield from self._ffn(stem, names.shared, layer.shared, self.shared_scale, "shared")
        elif names.shared is not None and self.zero_width:
            yield from self._zeros(stem, names.shared, layer)
        if names.shared_gate is not None:
            router = self.files.parts.tensors[layer.router]
            row = self._block(layer.shared_gate) if layer.shared_gate else Block((1, router.shape[1]))
            yield self._out(stem + names.shared_gate, row, role="shared", dtype=dtype)

    def _bias(self, layer: MoeLayer) -> Block:
        return self._block(layer.selection_bias) if layer.selection_bias else Block((self.files.experts,))

    def _experts(self, stem: str, layer: MoeLayer) -> Iterator[OutTensor]:
        names = self.target.names.experts
        if "{e}" in names.down:
            for e, ffn in enumerate(layer.experts):
                own = ExpertNames(
                    down=names.down.format(e=e), gate=str(names.gate).format(e=e), up=str(names.up).format(e=e)
                )
                yield from self._ffn(stem, own, ffn, self.routed_scale, "expert")
            return
        dtype = self.files.parts.dtype(layer.experts[0]["down"])
        inner = [self._block(ffn[part]) for ffn in layer.experts for part in ("gate", "up")]
        down = [self._block(ffn["down"], self.routed_scale) for ffn in layer.experts]
        width, hidden = inner[0].shape
        count = self.files.experts
        for name, shape, blocks in (
            (str(names.gate_up), (count, 2 * width, hidden), inner),
            (names.down, (count, hidden, width), down),
        ):
            yield OutTensor(stem + name, stem + name, (), shape, dtype, "expert", tuple(blocks))

    def _ffn(self, stem: str, names: ExpertNames, ffn: Ffn, scale: float, role: Role) -> Iterator[OutTensor]:
        dtype = self.files.parts.dtype(ffn["down"])
        gate, up, down = self._block(ffn["gate"]), self._block(ffn["up"]), self._block(ffn["down"], scale)
        if names.gate_up is not None:
            yield self._out(stem + names.gate_up, gate, up, role=role, dtype=dtype)
        else:
            yield self._out(stem + str(names.gate), gate, role=role, dtype=dtype)
            yield self._out(stem + str(names.up), up, role=role, dtype=dtype)
        yield self._out(stem + names.down, down, role=role, dtype=dtype)

    def _zeros(self, stem: str, names: ExpertNames, layer: MoeLayer) -> Iterator[OutTensor]:
        dtype = self.files.parts.dtype(layer.experts[0]["down"])
        hidden, width = self.files.parts.tensors[layer.router].shape[1], self.zero_width
        inner = {names.gate: width, names.up: width} if names.gate_up is None else {names.gate_up: 2 * width}
        for name, shape in [*((name, (rows, hidden)) for name, rows in inner.items()), (names.down, (hidden, width))]:
            yield self._out(f"{stem}{name}", Block(shape), role="shared", dtype=dtype)

    def _block(self, name: str, scale: float = 1.0) -> Block:
        return Block(self.files.parts.tensors[name].shape, (Read(SOURCE, name),), scale=scale)

    @staticmethod
    def _out(name: str, *blocks: Block, role: Role = "kept", dtype: str) -> OutTensor:
        """Stacked blocks."""
        shape = (sum(block.shape[0] for block in blocks), *blocks[0].shape[1:])
        return OutTensor(name, name, (), shape, dtype, role, blocks)
