"""Gradient compression: what several processes send each other in each step, in fewer bytes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

Compression = Literal["none", "fp16", "int8", "powersgd"]
RANK, PLAIN_STEPS = 4, 10
"""Of PowerSGD: the rank of the products that stand for a matrix, and the steps before it begins, whose gradients change most."""


class GradientCompression:
    """Compresses the gradients of a model that torch's DistributedDataParallel wraps, and counts the bytes that this process gives to be sent.

    - fp16: in float16, summed in float16.
    - int8: each tensor in 8 bits with one scale, rounded up or down at random, so that the mean is right (Alistarh et al., "QSGD", 2017,
      arXiv:1610.02132), and what rounding left out is added to the next gradient (Karimireddy et al., 2019, arXiv:1901.09847).
    - powersgd: matrices as products of rank 4, from the 11th step on, with what they left out added to the next gradient (Vogels et al., "PowerSGD",
      2019, arXiv:1905.13727).

    Attributes:
        plain_bytes, sent_bytes: of the gradients so far, without and with compression.
    """

    def __init__(self, kind: Compression, rank: int):
        self.kind, self.plain_bytes, self.sent_bytes = kind, 0, 0
        self._residuals: dict[int, Tensor] = {}
        self._random = torch.Generator().manual_seed(rank)
        self._state: Any = None

    def attach(self, model: nn.Module) -> None:
        """Compress from now on what `model`, a DistributedDataParallel, sends in its backward pass."""
        if self.kind == "powersgd":
            self._state = PowerSGDState(None, matrix_approximation_rank=RANK, start_powerSGD_iter=PLAIN_STEPS)
        hook = {"fp16": self._as_halves, "int8": self._as_integers, "powersgd": self._as_products}[self.kind]
        register: Any = model.register_comm_hook
        register(None, lambda _, bucket: hook(bucket))  # torch looks at annotations, and accepts none

    def note(self) -> str:
        """How many bytes were saved; empty if nothing was sent."""
        if not self.plain_bytes:
            return ""
        return f"gradients as {self.kind}: each process sent {self.sent_bytes:,} bytes instead of {self.plain_bytes:,} ({self.plain_bytes / self.sent_bytes:.1f}x fewer)"

    def _count(self, plain: int, sent: int) -> None:
        self.plain_bytes += plain
        self.sent_bytes += sent

    def _as_halves(self, bucket: Any) -> Any:
        self._count(bucket.buffer().nbytes, 2 * bucket.buffer().numel())
        return fp16_compress_hook(None, bucket)  # type: ignore[arg-type]

    def _as_products(self, bucket: Any) -> Any:
        plain, begun, before = bucket.buffer().nbytes, self._state.iter >= PLAIN_STEPS, self._state.total_numel_after_compression
        future = powerSGD_hook(self._state, bucket)
        numbers = self._state.total_numel_after_compression - before if begun else bucket.buffer().numel()
        self._count(plain, numbers * bucket.buffer().element_size())
        return future

    def _as_integers(self, bucket: Any) -> Any:
        gradients = bucket.gradients()
        codes, scales = zip(*(self._quantized(weight, gradient) for weight, gradient in zip(bucket.parameters(), gradients, strict=True)), strict=True)
        payload = torch.cat([torch.stack(scales).view(torch.uint8), *(code.flatten().view(torch.uint8) for code in codes)])
        self._count(bucket.buffer().nbytes, payload.nbytes)
        received = [torch.empty_like(payload) for _ in range(distributed.get_world_size())]

        def decode(_: Any) -> Tensor:
            shares = [_dequantized(each, gradients) for each in received]
            for number, gradient in enumerate(gradients):
                gradient.copy_(torch.stack([share[number] for share in shares]).mean(0).reshape(gradient.shape))
            return bucket.buffer()

        return distributed.all_gather(received, payload, async_op=True).get_future().then(decode)

    def _quantized(self, weight: nn.Parameter, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """(int8 codes, float32 scale) of a gradient with what was left out before; what is left out now is kept."""
        kept = self._residuals.get(id(weight))
        whole = gradient.detach().float() + (0 if kept is None else kept)
        codes, scale = quantize_at_random(whole, self._random)
        self._residuals[id(weight)] = whole - codes * scale
        return codes, scale


def quantize_at_random(values: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Values as (int8 codes, a float32 scale), rounded up or down with the probabilities that keep the mean.

    scale = max |v| / 127, and code = ⌊v / scale + u⌋ with u uniform in [0, 1).

    Args:
        values: float32, any shape.
        random: on the CPU.

    >>> codes, scale = quantize_at_random(torch.tensor([127.0, -127.0, 0.0]), torch.Generator().manual_seed(0))
    >>> codes, scale
    (tensor([ 127, -127,    0], dtype=torch.int8), tensor(1.))
    """
    scale = values.abs().amax() / 127 if values.numel() else values.new_zeros(())
    if not torch.isfinite(scale):  # the loop reports what is not finite, so it must arrive
        return torch.full(values.shape, 127, dtype=torch.int8), scale
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    noise = torch.rand(values.shape, generator=random).to(values.device)
    return (values / scale + noise).floor().clamp(-127, 127).to(torch.int8), scale


def _dequantized(payload: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """The gradients, flat, that one process sent."""
    scales = payload[: 4 * len(gradients)].view(torch.float32)
    codes = payload[4 * len(gradients) :].view(torch.int8).split([gradient.numel() for gradient in gradients])
    return [code.to(gradient.dtype) * scale for code, scale, gradient in zip(codes, scales, gradients, strict=True)]
