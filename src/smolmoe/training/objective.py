"""Loss terms in addition to the cross-entropy, and router interventions: a mixin over any Trainer.

The loss of a step is CE + sum over `ROUTER_LOSSES` of weight * mean over layers + w_g * mean over guided layers of
KL(target || router); with a teacher of weight w, (1 - w) CE + w T^2 KL(teacher || student) replaces CE. Which load the
balance term sees, and how it adds up over ranks and accumulated micro-batches, is in `smolmoe.moe.losses`. Under
guidance the load is balanced within each domain's experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import TrainerCallback

from smolmoe.errors import RequestError, TrainingError
from smolmoe.moe import losses
from smolmoe.moe.balance import choice_counts, domain_counts, update_selection_bias
from smolmoe.moe.control import control_routers
from smolmoe.moe.gating import Intervention, gate_spec, router_weight
from smolmoe.moe.routing import Routing, RoutingCapture, find_routers, selection_biases
from smolmoe.moe.ties import GroupTies
from smolmoe.recipe.schedule import schedule_of
from smolmoe.recipe.train import ObjectiveRecipe, RoutingRecipe
from smolmoe.training.distillation import Distillation
from smolmoe.training.fit import check_balance, check_terms
from smolmoe.training.guidance import Guidance
from smolmoe.training.replay import remember_choices


class Objective:
    """The router terms of one model, and the counts they need.

    Args:
        model: the unwrapped model; a dense one has no terms.
        granularity: G of an upcycled model, for tying the rows of a group.
        guidance: experts by name, for micro-batches whose tokens' domains are known.

    Attributes:
        counts: [L, E] choices since they were last taken by `take_counts`.
        load: [L, E] shares of the choices of the optimiser's step so far, on all ranks.
        hits: [guided layers + 1] since last taken by `take_hits`: tokens that a layer's router gives to an expert of
            their domain, and tokens.

    Raises:
        RequestError: the model cannot do what is requested.
    """

    def __init__(
        self,
        model: Any,
        objective: ObjectiveRecipe,
        routing: RoutingRecipe,
        granularity: int = 1,
        guidance: Guidance | None = None,
    ):
        weights = {loss: getattr(objective, loss.name) for loss in losses.ROUTER_LOSSES}
        self.weights = {loss: weight for loss, weight in weights.items() if weight}
        self.scope = objective.balance_scope
        self.bias_rate = schedule_of(objective.bias_rate)
        self.routers: list[Any] = [router for _, router in find_routers(model)]
        self.guidance = guidance
        check_terms(model, objective, routing, self.routers, granularity)
        if guidance is not None:
            check_balance(objective, guidance)
        self.tied_steps = routing.tie_groups
        self.sample = schedule_of(routing.sample)
        self.top_k = None if routing.top_k is None else schedule_of(routing.top_k)
        self.capture: RoutingCapture | None = None
        if not self.routers:
            return
        spec = gate_spec(self.routers[0])
        self.scoring = spec.scoring
        self.capture = RoutingCapture(model)
        self.experts = spec.experts
        self.control = control_routers(model, _intervention(routing, granularity))
        self.ties = GroupTies(model, granularity) if routing.tie_groups else None
        self.domains = 1 if guidance is None else len(guidance.members)
        self.counter = losses.LoadCounter(len(self.routers) * self.domains, self.experts)
        self.counts = torch.zeros(len(self.routers), self.experts, dtype=torch.int64)
        self.load = self.counts.float()
        self.hits = torch.zeros(1 if guidance is None else len(guidance.layers) + 1, dtype=torch.int64)
        self.begin_step(0)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within, routers are recorded; `terms` reads the records and clears them."""
        if self.capture is None:
            yield
            return
        self.capture.clear()
        with self.capture:
            yield

    def terms(self, domain_ids: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The weighted terms of the micro-batch just recorded, each with its graph.

        Args:
            domain_ids: [B, S], each token's domain; guidance needs them.
        """
        if self.capture is None:
            return {}
        routings = [self.capture.routing(layer) for layer in self.capture.layers]
        self.capture.clear()
        domains = self._domains_of(domain_ids, routings[0].logits)
        by_domain = self._count(routings, domains)
        counts = by_domain.sum(1)
        self.counts = self.counts.to(counts.device) + counts
        load = self.counter.add(by_domain.flatten(0, 1)).view_as(by_domain)
        self.load = self._step_load()
        if self.scope != "batch":
            load = by_domain / by_domain.sum(-1, keepdim=True).clamp_min(1)
        if not self.weights and self.guidance is None:
            return {}
        logits = torch.stack([routing.logits for routing in routings])
        allowed = None if self.guidance is None else self.guidance.allowed
        routed = losses.RoutedTokens(logits, load, self.scoring, allowed, domains)
        found = {loss.name: weight * loss.value(routed).mean() for loss, weight in self.weights.items()}
        if self.guidance is not None and domains is not None:
            found["guidance"] = self.guidance.term(logits, domains, self.scoring)
            hits = self.guidance.hits(logits, domains)
            self.hits = self.hits.to(hits.device) + torch.cat([hits, hits.new_tensor([len(domains)])])
        return found

    def _domains_of(self, domain_ids: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor | None:
        """[T]; None without guidance."""
        if self.guidance is None:
            return None
        if domain_ids is None:
            raise RequestError("the batches have no domains for their tokens.", field="guidance", value="domain_ids")
        self.guidance = self.guidance.to(logits.device)
        return domain_ids.flatten().to(logits.device)

    def _count(self, routings: list[Routing], domains: torch.Tensor | None) -> torch.Tensor:
        """[L, Dm, E] choices; without guidance all tokens are of one domain."""
        if domains is None:
            return torch.stack([choice_counts(routing) for routing in routings])[:, None]
        return torch.stack([domain_counts(routing, domains, self.domains) for routing in routings])

    def _step_load(self) -> torch.Tensor:
        """[L, E]: each expert's share of the choices of the step so far."""
        totals = self.counter.totals
        assert totals is not None
        counts = totals.view(-1, self.domains, self.experts).sum(1)
        return (counts / counts.sum(-1, keepdim=True).clamp_min(1)).float()

    def begin_step(self, step: int) -> None:
        """Before the forward pass of step number `step`, counted from 0: take the values that schedules have for it."""
        if self.capture is not None:
            top_k = None if self.top_k is None else round(self.top_k.at(step))
            self.control.change(sample=self.sample.at(step), top_k=top_k)

    def before_step(self, step: int) -> None:
        """Between the backward pass and the optimiser's step number `step`, counted from 0."""
        if self.capture is not None and self.ties is not None and step < self.tied_steps:
            self.ties.apply()

    def after_step(self, step: int) -> None:
        """After the optimiser's step number `step`: move selection biases and reset the counts."""
        if self.capture is None:
            return
        rate = self.bias_rate.at(step)
        if rate:
            means = [None] * len(self.load) if self.guidance is None else self.guidance.mean_load(self.load)
            biases = selection_biases(self.control.model).values()
            for bias, load, mean in zip(biases, self.load, means, strict=True):
                assert bias is not None  # `check_terms` saw it
                update_selection_bias(bias, load, rate, mean)
        self.counter.reset()

    @contextmanager
    def as_served(self) -> Iterator[None]:
        """Within, the router weights give the same function in stock transformers, for saving."""
        with self.control.folded() if self.capture is not None else nullcontext():
            yield

    def finish(self) -> None:
        """Prepare the model for inference: temperature folded into the weights, the class's own routers."""
        if self.capture is not None:
            self.control.fold()
            self.control.detach()

    def take_counts(self) -> torch.Tensor | None:
        """[L, E] choices of this process since the last call."""
        if self.capture is None:
            return None
        counts, self.counts = self.counts, torch.zeros_like(self.counts)
        return counts

    def take_hits(self) -> torch.Tensor | None:
        """`hits` of this process since the last call; None without guidance."""
        if self.guidance is None:
            return None
        hits, self.hits = self.hits, torch.zeros_like(self.hits)
        return hits

    def gradient_norms(self, terms: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The norm of each term's gradient on all router weights together; 0 if there is no path to them."""
        weights = [weight for weight in map(router_weight, self.routers) if weight.requires_grad]
        norms = {}
        for name, term in terms.items():
            grads: tuple[torch.Tensor | None, ...] = ()
            if term.requires_grad and weights:
                grads = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            found = [grad for grad in grads if grad is not None]
            norms[name] = torch.stack([grad.float().norm() for grad in found]).norm().item() if found else 0.0
        return norms

    def paths(self, terms: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """1 for a term with a path to a trained router, else 0: the part of `gradient_norms` that costs nothing.

        For sharded weights, whose gradients would have to be gathered.
        """
        trained = any(router_weight(router).requires_grad for router in self.routers)
        return {name: float(trained and term.requires_grad) for name, term in terms.items()}


def check_gradients(norms: Mapping[str, float], terms: Mapping[str, torch.Tensor]) -> None:
    """Stop if a configured term trains no router; norms of losses other than the router `terms` are ignored.

    Raises:
        TrainingError: naming the term and the reason.
    """
    for name, norm in norms.items():
        if name not in terms or norm != 0:  # NaN is reported by the gradient norm
            continue
        detached = not terms[name].requires_grad
        if not detached and terms[name].item() == 0:  # at its minimum, such as the z-loss of sigmoids of 0
            continue
        raise TrainingError(
            "the term is configured but gives the routers no gradient: "
            + (
                "it is detached from the graph." if detached else "no router weight is trained, or none is on its path."
            ),
            field=f"objective.{name}",
            value=terms[name].item(),
            fix="Let the routers train (requires_grad), or set the term's weight to 0.",
        )


def _intervention(routing: RoutingRecipe, granularity: int) -> Intervention:
    return Intervention(
        noise=routing.noise,
        temperature=routing.temperature,
        expert_dropout=routing.expert_dropout,
        fp32=routing.fp32,
        # While a group's rows are tied its experts must be sampled together, or they are not chosen together.
        granularity=granularity if routing.tie_groups else 1,
    )


class RoutedTraining:
    """For a Trainer: adds an `Objective` to its loss. Set `objective` before training.

    Attributes:
        objective: the router terms.
        distillation: a teacher's targets, also the Trainer's `compute_loss_func`; None without a teacher.
        record: called with each micro-batch's {"ce", "distill" (with a teacher), terms...}, detached, as they enter the
            step's loss; with a teacher, the cross-entropy enters it times 1 - w.
        gradients_every: steps between measurements of each term's gradient on the routers; 0 for never.
    """

    objective: Objective
    distillation: Distillation | None = None
    gradients_every: int = 100
    _measured_step: int | None = None
    model_accepts_loss_kwargs: bool
    current_gradient_accumulation_steps: int
    state: Any
    args: Any

    def record(self, values: dict[str, torch.Tensor]) -> None:
        """Keep the values of a micro-batch, in a subclass."""

    def record_gradients(self, norms: dict[str, float]) -> None:
        """Keep the norms of the terms' gradients, in a subclass."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        domain_ids = inputs.get("domain_ids")
        inputs = {name: value for name, value in inputs.items() if name != "domain_ids"}
        teacher = self.distillation
        if teacher is not None:
            inputs = teacher.pack(inputs)
        with self.objective.recording():
            found, outputs = super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        own = {"ce": found} if teacher is None else dict(zip(("ce", "distill"), found.unbind(), strict=True))
        terms = self.objective.terms(domain_ids)
        # A loss that is summed over the step's items is final; else it is divided by the accumulated batches later.
        summed = (self.model_accepts_loss_kwargs or teacher is not None) and num_items_in_batch is not None
        batches = self.current_gradient_accumulation_steps
        loss = own["ce"] if teacher is None else (1 - teacher.weight) * own["ce"] + own["distill"]
        loss = loss + sum(terms.values()) / (batches if summed else 1)
        if self._checks_loss():
            _require_finite(loss, "loss", self.state.global_step)
        if terms and getattr(self, "is_sharded", False):
            check_gradients(self.objective.paths(terms), terms)
        elif terms and self.gradients_every and self._is_measured():
            norms = self.objective.gradient_norms({**own, **terms})
            check_gradients(norms, terms)
            self.record_gradients(norms)
            self._measured_step = self.state.global_step
        own = {name: value.detach() * (batches if summed else 1) for name, value in own.items()}
        self.record({**own, **{name: value.detach() for name, value in terms.items()}})
        return (loss, outputs) if return_outputs else loss

    def _checks_loss(self) -> bool:
        # A rank that stopped alone would leave the others waiting. The gradient norm is the same on all of them.
        return self.args.world_size == 1 or not self.args.max_grad_norm

    def _is_measured(self) -> bool:
        """On the first micro-batch of every `gradients_every`-th step."""
        return self.state.global_step % self.gradients_every == 0 and self.state.global_step != self._measured_step

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]
        if not self.args.fp16:  # whose scaler skips such steps
            _require_finite(norm, "gradient norm", self.state.global_step)
        return norm


class RouterCallback(TrainerCallback):
    """Calls an objective around the optimiser's step, and lets checkpointed layers keep their choices."""

    def __init__(self, objective: Objective):
        self.objective = objective

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.objective.capture is not None:
            remember_choices(kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.objective.begin_step(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.objective.before_step(state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.objective.after_step(state.global_step)


class NotFiniteError(TrainingError):
    """A NaN or infinite loss or gradient; the weights are those before the step."""


def _require_finite(value: Any, what: str, step: int) -> None:
    value = torch.as_tensor(value)
    if not bool(torch.isfinite(value.detach()).all()):
        raise NotFiniteError(
            f"the {what} of step {step + 1} is {value.item():g}; the step was not taken.",
            field="step",
            value=step + 1,
            fix="Lower trainer.learning_rate or check the data at this step, then use `resume='latest'`.",
        )
