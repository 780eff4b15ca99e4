"""AdaLoRA: low-rank adapters that share out a budget of ranks while they train.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023 (arXiv:2303.10512).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from kdkit import Context, Step, Term, TrainPart, param
from kdkit.models import linear_kinds
from kdkit_peft.adapter_stage import AdapterPart, AdapterStage

UNKNOWN = 0
"""Steps of a training of which only the first is known."""


class AdaLora(AdapterStage):
    """Train low-rank adapters whose ranks are shared out while they train: more where they matter.

    A layer computes W·x + (alpha / initial rank)·P·Λ·Q·x, where Q is (rank, in) and P is (out, rank), both nearly orthogonal, and Λ is
    diagonal and starts at 0, so the outputs start unchanged. From the step at `warmup` to the one at 1 - `final`, the least important values
    of Λ over all layers become 0, until each layer has `rank` of them on average. Importance is |weight · gradient|, smoothed; a training
    that continues from a checkpoint begins to smooth again. The adapters stay attached: `peft merge` adds them to the weights.
    """

    id: ClassVar[str] = "peft.adalora"
    known_as: ClassVar[tuple[str, ...]] = ("adaptive LoRA",)

    rank: int = param(8, "of the adapters after training, on average", ge=1, search=(2, 32), main=True)
    initial_rank: int = param(12, "of every adapter at the start", ge=2)
    alpha: float = param(16.0, "the adapters' output is multiplied by alpha / initial rank", gt=0)
    dropout: float = param(0.0, "of the adapters' input, in training", ge=0, lt=1)
    warmup: float = param(0.1, "share of the training before ranks fall", ge=0, lt=1)
    final: float = param(0.3, "share of the training after ranks have fallen", ge=0, lt=1)
    every: int = param(1, "steps between two reductions", ge=1)
    orthogonality: float = param(0.5, "weight of ‖PᵀP - 1‖ + ‖QQᵀ - 1‖ in the loss, averaged over the matrices", ge=0)

    @pydantic.model_validator(mode="after")
    def _falling(self) -> AdaLora:
        if self.rank >= self.initial_rank:
            raise ValueError(f"--rank {self.rank} must be below --initial-rank {self.initial_rank}, from which the ranks fall")
        if self.warmup + self.final >= 1:
            raise ValueError("--warmup and --final leave no part of the training in which ranks fall; their sum must be below 1")
        return self

    def make_config(self, pattern: str, model: nn.Module | None = None) -> Any:
        """The number of steps is known only in the loop, so the schedule is that of `RankPart`."""
        from peft import AdaLoraConfig

        options: dict[str, Any] = {"lora_alpha": self.alpha, "lora_dropout": self.dropout, "deltaT": self.every, "total_step": 2}
        return AdaLoraConfig(target_modules=pattern, init_r=self.initial_rank, target_r=self.rank, **options)

    def kinds(self) -> tuple[Any, ...]:
        return linear_kinds()

    def describe(self, count: int) -> str:
        return f"{count} adapters of rank {self.initial_rank}, which fall to {self.rank} on average"

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return RankPart(self)

    def finish(self, model: nn.Module, context: Context) -> nn.Module:
        ranks = {name.partition(".lora_E")[0]: int((values != 0).sum()) for name, values in model.named_parameters() if ".lora_E" in name}
        if ranks and any(ranks.values()):
            context.note(f"ranks after training: {', '.join(f'{name} {rank}' for name, rank in ranks.items())}")
        return model


class RankPart(AdapterPart):
    """The task's loss, the penalty on matrices that are not orthogonal, and the fall of the ranks after each step."""

    def __init__(self, stage: AdaLora):
        super().__init__(stage.loss if stage.train else 0.0, stage.also_train)
        self.stage = stage
        self.allocator: Any = None

    def open(self, model: nn.Module) -> None:
        from peft.tuners.adalora.layer import RankAllocator

        super().open(model)
        self.allocator = RankAllocator(model, self.stage.make_config(""), "default")
        self.pattern: dict[str, list[bool]] = {}
        self.gradients: dict[nn.Parameter, Tensor] = {}
        adapters = [weight for name, weight in model.named_parameters() if ".lora_" in name]
        self.hooks = [weight.register_post_accumulate_grad_hook(self._keep_gradient) for weight in adapters]

    def close(self, model: nn.Module) -> None:
        for hook in getattr(self, "hooks", ()):
            hook.remove()
        super().close(model)

    def _keep_gradient(self, weight: Tensor) -> None:
        """For `after_step`, before which the loop clears gradients."""
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None
        self.gradients[weight] = weight.grad.detach().clone()

    def terms(self, step: Step) -> Iterable[Term]:
        yield from super().terms(step)
        if self.stage.orthogonality:
            yield Term("orthogonality", _orthogonality(step.model), self.stage.orthogonality, penalty=True)

    def after_step(self, step: Step) -> None:
        """peft's schedule, with the number of steps that the progress shows from the second step on."""
        total = round(step.index / step.progress) + 1 if step.index else 1 if step.progress else UNKNOWN
        config = self.allocator.peft_config
        config.total_step, config.tinit, config.tfinal = total, int(self.stage.warmup * total), int(self.stage.final * total)
        done, last = step.index + 1, total - config.tfinal
        if total == UNKNOWN or total == 1:
            self._with_gradients(lambda: self.allocator.update_ipt(step.model))
        if total == UNKNOWN:
            return
        if done > last:
            self.allocator.mask_using_rank_pattern(step.model, self.pattern)
        else:
            _, pattern = self._with_gradients(lambda: self.allocator.update_and_allocate(step.model, done, force_mask=done == last))
            self.pattern = pattern or self.pattern

    def _with_gradients(self, call: Callable[[], Any]) -> Any:
        for weight, gradient in self.gradients.items():
            weight.grad = gradient
        try:
            return call()
        finally:
            for weight in self.gradients:
                weight.grad = None


def _orthogonality(model: nn.Module) -> Tensor:
    """Mean of ‖PᵀP - 1‖ and ‖QQᵀ - 1‖ over the matrices of all adapters, a scalar."""
    grams = [weight.T @ weight if ".lora_B" in name else weight @ weight.T for name, weight in model.named_parameters() if ".lora_A" in name or ".lora_B" in name]
    return torch.stack([torch.linalg.norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)) for gram in grams]).mean()
