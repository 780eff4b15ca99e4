"""Prompts: learned vectors that a frozen transformer reads with its tokens.

Lester, Al-Rfou, Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021 (arXiv:2104.08691).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from kdkit import Batch, Context, Forecast, KdError, Needs, TrainPart, TrainStage, Trait, param
from kdkit.models import evaluating, select_layers
from kdkit_peft.adapter_stage import FROZEN, AdapterPart
from kdkit_peft.prompted import Encoder, Prompted

PROMPT = "prompt"
"""The trait of a model with a learned prompt, which no stage merges: it extends the inputs."""


class PromptStage(TrainStage):
    """A stage that trains a prompt. A subclass writes `make_encoder`."""

    needs: ClassVar[Needs] = Needs(example=True, train=True)
    requires: ClassVar[Iterable[str]] = {Trait.TRAINABLE, Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE}
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, PROMPT}
    adds: ClassVar[Iterable[str]] = {PROMPT}

    tokens: int = param(8, "vectors of the prompt", ge=1, search=(2, 64), main=True)
    also_train: tuple[str, ...] = param((), "layers to train fully in addition to the prompt, such as a new classifier", names="layers")
    loss: float = param(1.0, "weight of the task's loss; 0 trains for the other stages of a together group only, and needs no labels", ge=0, advanced=True)

    def make_encoder(self, width: int) -> Encoder | None:
        """What computes the vectors while they train; None: they train themselves."""
        return None

    def required_inputs(self) -> Needs:
        return self.needs | Needs(labels=self.loss > 0)

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        select_layers(model, self.also_train)
        yield from super().check(model, context)
        batch = context.example
        if isinstance(model, Prompted):
            yield "it has a prompt already, and nothing merges one; go back to before it"
            return
        if not hasattr(model, "get_input_embeddings") or "input_ids" not in batch.kwargs:
            yield f"it extends the embedded tokens of a transformer, and {type(model).__name__} is not one of transformers that takes input_ids by name"
        elif (most := getattr(model.config, "max_position_embeddings", None)) and batch.kwargs["input_ids"].shape[1] + self.tokens > most:
            yield f"{batch.kwargs['input_ids'].shape[1]} tokens and a prompt of {self.tokens} are more than the {most} positions of {type(model).__name__}"

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Wrap the model, and freeze all its weights."""
        trained = select_layers(model, self.also_train)
        _try_embeddings(model, context.example[:2])
        frozen = tuple(name for name, weight in model.named_parameters() if not weight.requires_grad)
        model.requires_grad_(False)
        for module in trained.values():
            module.requires_grad_(True)
        embeddings: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
        chosen = torch.randint(len(embeddings), (self.tokens,), generator=torch.Generator().manual_seed(context.seed))
        start = embeddings.detach()[chosen.to(embeddings.device)].to(torch.promote_types(embeddings.dtype, torch.float32))
        encoder = self.make_encoder(start.shape[1])
        made = Prompted(model, start, _place(model), None if encoder is None else encoder.to(start)).train(model.training)
        setattr(made, FROZEN, frozen)
        for name, module in model.named_modules():
            if name and any(True for _ in module.parameters(recurse=False)):
                context.note_rename(name, f"base.{name}")
        learning, total = (sum(weight.numel() for weight in made.parameters() if weight.requires_grad or every) for every in (False, True))
        context.note(f"a prompt of {self.tokens} vectors: {learning:,} of {total:,} parameters train; the outputs start elsewhere than those of the model")
        return made

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return AdapterPart(self.loss, tuple(f"base.{pattern}" if not any(sign in pattern for sign in "*?[") else pattern for pattern in self.also_train))

    def finish(self, model: nn.Module, context: Context) -> nn.Module:
        """Keep the vectors alone, and let the weights train that trained before."""
        assert isinstance(model, Prompted)
        if model.encoder is not None:
            model.drop_encoder()
            context.note(f"of what trained, the {model.prompt.numel():,} numbers of the vectors remain")
        frozen = {f"base.{name}" for name in vars(model).pop(FROZEN, ())}
        for name, weight in model.named_parameters():
            weight.requires_grad_(weight.is_floating_point() and name not in frozen)
        return model

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """The wrapped model, without what only trains."""
        return Forecast(self.finish(self.prepare(model, context), context))


class Prompt(PromptStage):
    """Train vectors that a frozen transformer reads with its tokens.

    The model becomes a wrapper around itself, `base`, with `prompt` (tokens, width), which starts as embeddings of random tokens. Language
    models read it before the tokens, encoders behind the first token, which represents the sequence. Outputs of single tokens are those of
    the tokens alone. Nothing merges a prompt: it extends the inputs. All other weights stay bit for bit.
    """

    id: ClassVar[str] = "peft.prompt"
    known_as: ClassVar[tuple[str, ...]] = ("prompt tuning", "soft prompts")


class PTuning(PromptStage):
    """Train vectors that a frozen transformer reads with its tokens, through an LSTM or an MLP, which train with them.

    Liu et al., "GPT Understands, Too", 2021 (arXiv:2103.10385). Like `peft prompt`, but the vectors are computed from others while they
    train; the computed ones remain.
    """

    id: ClassVar[str] = "peft.p-tuning"
    known_as: ClassVar[tuple[str, ...]] = ("ptuning",)

    encoder: Literal["lstm", "mlp"] = param("lstm", "computes the vectors while they train", main=True)

    def make_encoder(self, width: int) -> Encoder | None:
        return Encoder(self.encoder, width)


def _place(model: Any) -> int:
    """Tokens before the prompt: encoders that are no language models represent a sequence by their first token."""
    generates = getattr(model.config, "is_decoder", False) or getattr(model.config, "is_encoder_decoder", False) or model.can_generate()
    return 0 if generates else int(_is_bidirectional(model))


def _is_bidirectional(model: Any) -> bool:
    """Whether the first token sees the last one: its output changes with it."""
    ids = torch.zeros(1, 3, dtype=torch.long, device=model.device)
    other = ids.clone()
    other[0, 2] = 1
    with evaluating(model):
        first, second = (model.base_model(input_ids=each).last_hidden_state[:, 0] for each in (ids, other))
    return not torch.equal(first, second)


def _try_embeddings(model: Any, batch: Batch) -> None:
    """Refuse a model that computes something else from embedded tokens than from their ids."""
    inputs = dict(batch.to(model.device).kwargs)
    with evaluating(model):
        expected = model(**inputs)
        try:
            embedded = model.get_input_embeddings()(inputs.pop("input_ids"))
            given = model(inputs_embeds=embedded, **inputs)
        except (TypeError, ValueError) as error:
            raise KdError(f"{type(model).__name__} takes no embedded tokens: {error}", "%kd peft lora adapts its weights instead") from error
    one, other = (next(iter(each.values())) for each in (expected, given))
    if not torch.allclose(one, other, atol=1e-4, rtol=1e-3):
        raise KdError(f"{type(model).__name__} gives other outputs for embedded tokens than for their ids, so a prompt can't be put among them", "%kd peft lora")
