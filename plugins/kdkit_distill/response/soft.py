"""Soft labels: the student learns the teacher's whole distribution, not only its first choice.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv:1503.02531); the other divergences:
Agarwal et al., "On-Policy Distillation of Language Models", 2024 (arXiv:2306.13649). With z the logits, p = softmax(z / T)
and b the balance, the loss per item or token is

    forward         T² · KL(p_t ‖ p_s)                                              the student covers all that the teacher does
    reverse         T² · KL(p_s ‖ p_t)                                              it keeps to what the teacher thinks likely
    jensen-shannon  T² · (b · KL(p_t ‖ m) + (1 - b) · KL(p_s ‖ m)), m = b · p_t + (1 - b) · p_s            bounded; between both
    mse             mean over the classes of (z_s / T - z_t / T)²                   TextBrewer's: it has no T² (--temperature 1)
    cosine          1 - cos(z_s, z_t)                                               T cancels out

The last two compare vectors and numbers too (embeddings, regressions), which have no temperature: T is 1 there.

Pitfalls: alpha and T² change the size of the step under SGD, so tune the learning rate again before crediting the teacher.
As T grows, forward goes to half the mean squared distance of the centred logits. Reverse is infinite where the teacher
rules a class out that the student does not. Of many classes, --top-k keeps the most probable ones and one event for all
others: with k = 64 of 32,000 and .80 of the mass, the gradient is within 2 % of the exact one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

from torch import Tensor

from kdkit.contract import param
from kdkit.errors import KdError
from kdkit.tasks import Classification, Task
from kdkit.training import Term
from kdkit_distill.response.divergences import cosine_distance, jensen_shannon, reverse, soft_labels, squared
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.signals import Exchange, Signal, TopK, top_k


class Soft(ResponseStage):
    """Match the teacher's softened class probabilities (KD).

    Loss per item, or token: (1 - alpha) · label loss + alpha · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)). T² keeps the
    second term's gradient comparable to the first's as T grows. --divergence compares otherwise; mse and cosine compare
    vectors and numbers too.
    """

    id: ClassVar[str] = "distill.soft"

    divergence: Literal["forward", "reverse", "jensen-shannon", "mse", "cosine"] = param(
        "forward", "how both are compared: a divergence of the probabilities; mse and cosine of the logits, or of vectors and numbers"
    )
    balance: float = param(0.5, "of jensen-shannon: the teacher's share in the mixture that both are compared with", gt=0, lt=1, advanced=True)
    top_k: int | None = param(None, "compare the teacher's so many most probable classes, and all others as one; all when not said", ge=1, advanced=True)

    @property
    def of_probabilities(self) -> bool:
        """Whether probabilities are compared, and not what the model says as it is."""
        return self.divergence not in ("mse", "cosine")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.top_k is None:
            return
        if not self.of_probabilities:
            yield f"--top-k goes with probabilities, and --divergence {self.divergence} compares all logits; leave out one of them"
        if self.temperature_schedule != "constant":
            yield "--top-k keeps probabilities of one temperature, so it can't follow --temperature-schedule; leave out one of them"

    def unsuited(self, task: Task) -> str:
        reason = super().unsuited(task) if self.of_probabilities else ""
        return reason and f"{reason}; --divergence mse or cosine compares vectors and numbers"

    def unfit(self, student: Signal, teacher: Signal) -> str:
        if self.divergence == "cosine" and student.logits.shape[-1] == 1:
            return "the cosine of two single numbers is only their sign; use --divergence mse"
        if self.of_probabilities and student.logits.shape[-1] == 1:
            return "a softmax over one class is constant, so there would be nothing to learn; use --divergence mse"
        return ""

    def terms(self, seen: Exchange) -> Iterable[Term]:
        temperature = self.temperature_at(seen.step.progress) if isinstance(seen.step.task, Classification) else 1.0
        yield Term("soft", self.compared(seen.student.logits, seen.teacher, temperature))

    def compared(self, student: Tensor, teacher: Signal, temperature: float) -> Tensor:
        """How far the student is from the teacher: (..., classes) logits and a signal -> (...)."""
        if self.divergence == "mse":
            return squared(student, teacher.dense, temperature)
        if self.divergence == "cosine":
            return cosine_distance(student, teacher.dense)
        asked = self._kept(teacher.logits, temperature)
        if self.divergence == "jensen-shannon":
            return jensen_shannon(student, asked, temperature, self.balance)
        return (reverse if self.divergence == "reverse" else soft_labels)(student, asked, temperature)

    def _kept(self, answers: Tensor | TopK, temperature: float) -> Tensor | TopK:
        """What of the teacher's answers is compared: all, or the most probable classes."""
        if not isinstance(answers, TopK):
            return answers if self.top_k is None else top_k(answers, self.top_k, temperature)
        if answers.temperature != temperature:
            raise KdError(
                f"the teacher's kept answers are softened by a temperature of {answers.temperature:g}, and {temperature:g} is asked for",
                f"keep them anew at that temperature, or take --temperature {answers.temperature:g} without a schedule",
            )
        return answers
