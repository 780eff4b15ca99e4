"""The teacher cache: what comes out is what the teacher said, found by what went in, and refused where that can't be known."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from kdkit.data import Batch, Data
from kdkit.errors import Cancelled, KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import CausalLM, Classification, Task
from kdkit.training import fit
from kdkit_distill.response.soft import Soft
from kdkit_distill.signals import TopK, top_k
from kdkit_distill.teachers.cache.columns import Column
from kdkit_distill.teachers.cache.file import Reader
from kdkit_distill.teachers.cache.items import Spans, keys
from kdkit_distill.teachers.cache.source import Cached
from kdkit_distill.teachers.sources import ModelSource, Source
from tests.fixtures import zoo
from tests.fixtures.interruption import interrupted, interrupted_at_blocks, moments
from tests.fixtures.lessons import CountingTeacher, weights


def points(items: int = 40) -> tuple[Tensor, Tensor]:
    x = torch.randn(items, 16, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(items) % 4


def run(data: Any = None, teacher: nn.Module | None = None, task: Task | None = None) -> Context:
    return Context(task or Classification(), objects={"train": adopt_data(points() if data is None else data, 8), "teacher": teacher or CountingTeacher()})


def opened(context: Context, path: Path, layers: tuple[str, ...] = (), **options: Any) -> Cached:
    source = Cached(ModelSource("teacher", context), str(path), context.data("train"), context, **options)
    source.open(torch.device("cpu"), layers)
    return source


def trained(context: Context, **options: Any) -> nn.Module:
    return fit(zoo.mlp(), [Soft(**{"epochs": 2, **options})], context)


# What comes out -----------------------------------------------------------------------------------------------------


def test_its_answers_are_those_of_the_teacher_to_the_bit(tmp_path: Path) -> None:
    context = run()
    cached, live = opened(context, tmp_path / "answers", ("first", "second")), ModelSource("teacher", context)
    live.open(torch.device("cpu"), ("first", "second"))
    for batch in context.data("train").batches():
        one, other = cached.signal(batch), live.signal(batch)
        assert torch.equal(one.logits, other.logits)
        assert {name: torch.equal(one.features[name], other.features[name]) for name in other.features} == {"first": True, "second": True}
    cached.close()
    live.close()


@pytest.mark.slow
def test_a_student_trained_on_it_is_the_one_trained_beside_the_teacher(tmp_path: Path) -> None:
    data = adopt_data(points(), 40)
    assert torch.equal(weights(trained(run(data))), weights(trained(run(data), cache=str(tmp_path / "answers"))))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"shuffle": True, "seed": 5}, {"batch_size": 3}, {"shuffle": True, "seed": 6, "batch_size": 17}])
def test_neither_order_nor_batch_size_matters(tmp_path: Path, options: dict[str, Any]) -> None:
    context = run()
    cached = opened(context, tmp_path / "answers")
    for _ in range(2):
        for batch in context.data("train").batches(**options):
            torch.testing.assert_close(cached.signal(batch).logits, context.objects["teacher"].eval()(*batch.args).detach())


def test_numbers_that_came_to_mean_other_items_are_not_trusted(tmp_path: Path) -> None:
    context = run()
    cached, batch = opened(context, tmp_path / "answers"), context.data("train").example()
    assert batch.numbers is not None
    right = cached.signal(batch).logits
    assert torch.equal(cached.signal(batch).logits, right)
    assert torch.equal(cached.signal(replace(batch, numbers=batch.numbers.flip(0))).logits, right)


@pytest.mark.slow
def test_the_teacher_is_asked_once_an_item_and_never_for_a_file_that_is_there(tmp_path: Path) -> None:
    teacher = CountingTeacher()
    trained(run(teacher=teacher), cache=str(tmp_path / "answers"), epochs=5)
    assert teacher._asked == 5
    again = copy.deepcopy(teacher)
    again._asked = 0
    trained(run(teacher=again), cache=str(tmp_path / "answers"), epochs=3, batch_size=20)
    assert again._asked == 0


def test_equal_items_have_one_row(tmp_path: Path) -> None:
    x, y = points(10)
    context = run((x.repeat(3, 1), y.repeat(3)))
    assert opened(context, tmp_path / "answers").reader.manifest["rows"] == 10


def test_half_precision_takes_half_the_room_and_comes_out_in_the_teachers_type(tmp_path: Path) -> None:
    context = run()
    full, half = opened(context, tmp_path / "full"), opened(context, tmp_path / "half", kept="fp16")
    batch = context.data("train").example()
    assert half.signal(batch).logits.dtype == torch.float32
    torch.testing.assert_close(full.signal(batch).logits, half.signal(batch).logits, rtol=1e-3, atol=1e-3)
    assert half.reader.manifest["bytes"] * 2 == full.reader.manifest["bytes"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_float_type_comes_out_as_it_went_in(tmp_path: Path, dtype: torch.dtype) -> None:
    class Typed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :4] * 3).to(dtype)

    context = run(teacher=Typed())
    cached, batch = opened(context, tmp_path / "answers"), context.data("train").example()
    assert cached.signal(batch).logits.dtype == dtype
    assert torch.equal(cached.signal(batch).logits, Typed()(*batch.args))


def test_classes_ruled_out_stay_ruled_out_in_half_precision(tmp_path: Path) -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(torch.arange(4) == 2, -torch.inf, x[:, :4])

    context = run(teacher=Sure())
    assert torch.isinf(opened(context, tmp_path / "answers", kept="fp16").signal(context.data("train").example()).logits[:, 2]).all()


# What is kept of many classes


@pytest.mark.slow
@given(st.integers(1, 40_000), st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_class_numbers_survive_being_packed(classes: int, k: int, seed: int) -> None:
    bits = max(1, (classes - 1).bit_length())
    numbers = np.random.default_rng(seed).integers(0, classes, (3, 2, k))
    for column, values in ((Column("indices", "bits", "int64", (k,), True, bits), numbers), (Column("indices", "bits", "int64", (2, k), False, bits), numbers)):
        packed = column.write(values)
        assert packed.shape[-1] == column.width
        assert column.read(packed).tolist() == numbers.tolist()


class Widely(nn.Module):
    def __init__(self, classes: int = 32_000):
        super().__init__()
        self.register_buffer("spread", torch.randn(16, classes, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.spread


@pytest.mark.slow
def test_top_k_of_many_classes_takes_250_bytes_a_row(tmp_path: Path) -> None:
    context = run(teacher=Widely())
    cached, batch = opened(context, tmp_path / "answers", kept="fp16", top=(64, 2.0)), context.data("train").example()
    assert cached.reader.manifest["bytes"] / cached.reader.manifest["rows"] <= 250
    found, expected = cached.signal(batch).logits, top_k(Widely()(*batch.args), 64, 2.0)
    assert isinstance(found, TopK)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.values, expected.values, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(found.tail, expected.tail, rtol=2e-3, atol=1e-3)
    assert (found.classes, found.temperature) == (32_000, 2.0)


@pytest.mark.slow
def test_a_student_of_top_k_learns_the_same_from_the_cache(tmp_path: Path) -> None:
    options, data = {"top_k": 2, "temperature": 3.0}, adopt_data(points(), 40)
    assert torch.equal(weights(trained(run(data), **options)), weights(trained(run(data), cache=str(tmp_path / "answers"), **options)))
    with pytest.raises(KdError, match="2 most probable classes at temperature 3, not all classes"):
        trained(run(), cache=str(tmp_path / "answers"))
    with pytest.raises(KdError, match="at temperature 3, not the 2 most probable classes at temperature 1"):
        trained(run(), cache=str(tmp_path / "answers"), top_k=2)


# Tokens


def tokens(padding: int, left: bool = False) -> Data:
    """Sequences of 3 to 8 tokens, padded."""
    rows = [torch.randint(3, 90, (3 + n % 6,), generator=torch.Generator().manual_seed(n)) for n in range(12)]
    width = 8 + padding
    ids, mask = torch.full((12, width), 7), torch.zeros(12, width, dtype=torch.long)
    for n, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[n, place], mask[n, place] = row, 1
    return adopt_data({"input_ids": ids, "attention_mask": mask}, 4)


class Speller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(96, 8), nn.Linear(8, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.embed(input_ids))


@pytest.mark.slow
@pytest.mark.parametrize(("padding", "left"), [(0, False), (5, False), (3, True)])
def test_tokens_are_found_whatever_their_padding(tmp_path: Path, padding: int, left: bool) -> None:
    teacher = Speller()
    opened(run(tokens(0), teacher, CausalLM()), tmp_path / "answers", ("embed",)).close()
    other = run(tokens(padding, left), teacher, CausalLM())
    cached = opened(other, tmp_path / "answers", ("embed",))
    for batch in other.data("train").batches(shuffle=True, seed=3, batch_size=5):
        real = batch.kwargs["attention_mask"].bool()
        signal = cached.signal(batch)
        torch.testing.assert_close(signal.logits[real], teacher(**batch.kwargs)[real])
        torch.testing.assert_close(signal.features["embed"][real], teacher.embed(batch.kwargs["input_ids"])[real])
        assert not signal.logits[~real].any()


def test_a_row_of_tokens_is_as_long_as_its_item(tmp_path: Path) -> None:
    cached = opened(run(tokens(40), Speller(), CausalLM()), tmp_path / "answers")
    assert cached.reader.manifest["bytes"] == sum(3 + n % 6 for n in range(12)) * 11 * 4


def test_a_mask_that_is_all_ones_is_as_good_as_none() -> None:
    ids = torch.randint(0, 9, (3, 5))
    assert (keys(Batch((), {"input_ids": ids})) == keys(Batch((), {"input_ids": ids, "attention_mask": torch.ones(3, 5)}))).all()


def test_a_hole_in_the_mask_is_another_input() -> None:
    ids, holed = torch.randint(0, 9, (1, 5)), torch.tensor([[1, 1, 0, 1, 1]])
    assert keys(Batch((), {"input_ids": ids}))[0] != keys(Batch((), {"input_ids": ids, "attention_mask": holed}))[0]
    assert Spans.of(Batch((), {"input_ids": ids, "attention_mask": holed})).length.tolist() == [5]


def test_answers_whose_length_follows_the_padding_are_refused(tmp_path: Path) -> None:
    class Frames(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return torch.zeros(len(input_ids), input_ids.shape[1] // 2, 11)

    batches = [{"input_ids": torch.ones(2, width, dtype=torch.long), "attention_mask": torch.ones(2, width)} for width in (6, 8)]
    with pytest.raises(KdError, match="differ in shape or type between batches"):
        opened(run(batches, Frames(), CausalLM()), tmp_path / "answers")
    assert list(tmp_path.iterdir()) == []


# Keys


def test_what_a_model_gets_is_the_key_and_what_it_does_not_get_is_not() -> None:
    x = torch.randn(4, 3)
    plain = keys(Batch((x,)))
    assert len(set(plain.tolist())) == 4
    assert (plain == keys(Batch((x,), labels=torch.zeros(4), numbers=torch.arange(4)))).all()
    others = [Batch((x.double(),)), Batch((x.unsqueeze(1),)), Batch((), {"0x": x}), Batch((x,), {"scale": 2.0}), Batch((x, x)), Batch((x + 1e-6,))]
    for other in others:
        assert not np.isin(keys(other), plain).any()


@given(st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_key_is_the_items_own_wherever_it_is(items: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    batch = Batch((torch.randint(0, 3, (items, 2), generator=random),), {"scale": torch.randn(items, generator=random)})
    order = torch.randperm(items, generator=random)
    assert (keys(batch)[order.numpy()] == keys(batch[order])).all()
    assert (keys(batch)[:1] == keys(batch[:1])).all()


# What is refused ----------------------------------------------------------------------------------------------------


def refused(path: Path, match: str, *, data: Any = None, teacher: nn.Module | None = None, **options: Any) -> KdError:
    student = zoo.mlp()
    before = weights(student)
    with pytest.raises(KdError, match=match) as caught:
        fit(student, [Soft(cache=str(path), **options)], run(data, teacher))
    assert torch.equal(weights(student), before)
    assert caught.value.hints
    return caught.value


def made(path: Path) -> Path:
    trained(run(), cache=str(path))
    return path


@pytest.mark.slow
def test_another_teacher_is_refused_also_by_its_dropout(tmp_path: Path) -> None:
    path, other = made(tmp_path / "answers"), CountingTeacher()
    refused(path, "is of another teacher", teacher=CountingTeacher(4))
    other.dropout.p = 0.3
    refused(path, "is of another teacher", teacher=other)


@pytest.mark.slow
def test_other_inputs_are_refused_before_training(tmp_path: Path) -> None:
    path, (x, y) = made(tmp_path / "answers"), points()
    refused(path, "not in the cache", data=(x * 2, y))
    refused(path, "40 items, but the data has 80", data=(torch.cat([x, x * 2]), torch.cat([y, y])))


@pytest.mark.slow
def test_fewer_of_the_same_inputs_will_do(tmp_path: Path) -> None:
    path, (x, y) = made(tmp_path / "answers"), points()
    trained(run((x[5:20], y[5:20])), cache=str(path))


@pytest.mark.slow
def test_an_input_that_is_not_there_stops_the_training(tmp_path: Path) -> None:
    path, (x, y) = made(tmp_path / "answers"), points()
    with pytest.raises(KdError, match="1 of 8 inputs of a batch are not in the cache"):
        trained(run((torch.cat([x[:39], x[:1] * 2]), y)), cache=str(path))


def test_layers_and_precision_that_were_not_kept_are_refused(tmp_path: Path) -> None:
    context = run()
    opened(context, tmp_path / "answers", ("first",)).close()
    opened(context, tmp_path / "answers").close()
    with pytest.raises(KdError, match="another choice of layers, without second"):
        opened(context, tmp_path / "answers", ("first", "second"))
    refused(tmp_path / "answers", "kept as fp32, not fp16", cache_as="fp16")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = made(tmp_path / "answers")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "is damaged|is not a teacher cache")


@pytest.mark.slow
def test_a_foreign_or_newer_file_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "answers")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"kdkit_teacher_cache": 2', b'"kdkit_teacher_cache": 9'))
    refused(path, "has format 9")
    path.write_text(json.dumps({"some": "recipe"}) * 9)
    refused(path, "is not a teacher cache")
    path.unlink()
    path.mkdir()
    refused(path, "is a folder, but a cache is one file")


def test_random_inputs_are_explained_before_the_teacher_is_asked(tmp_path: Path) -> None:
    class Flipped(Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, number: int) -> tuple[Tensor, int]:
            return points()[0][number] + (torch.rand(()) < 0.5), number % 4

    teacher = CountingTeacher()
    error = refused(tmp_path / "answers", "the inputs are random", data=Flipped(), teacher=teacher)
    assert "augmentation" in str(error)
    assert teacher._asked == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sampler_of_its_own_is_no_random_input(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(*points()), 8, sampler=WeightedRandomSampler(torch.ones(40), 40, replacement=False))
    trained(run(loader), cache=str(tmp_path / "answers"))


def test_a_teacher_of_nan_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    class Sick(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :4] / 0 * 0

    refused(tmp_path / "answers", "output is nan", teacher=Sick())
    assert list(tmp_path.iterdir()) == []


def test_values_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :4] * 1e6

    refused(tmp_path / "answers", "too large for fp16", teacher=Loud(), cache_as="fp16")


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "answers", "can't write the cache")


def test_answers_that_change_while_the_student_learns_are_refused(tmp_path: Path) -> None:
    class Moving(Source):
        pass

    context = run()
    with pytest.raises(KdError, match="can't be cached"):
        Cached(Moving(), str(tmp_path / "answers"), context.data("train"), context).open(torch.device("cpu"))


# Interrupts ---------------------------------------------------------------------------------------------------------


def test_cancelling_while_it_is_filled_leaves_nothing(tmp_path: Path) -> None:
    context = run()
    context.observe = lambda progress: context.cancelled.set() if progress.text == "running the teacher once" else None
    with pytest.raises(Cancelled):
        trained(context, cache=str(tmp_path / "answers"))
    assert list(tmp_path.iterdir()) == []


def test_progress_is_reported(tmp_path: Path) -> None:
    context, seen = run(), []
    context.observe = lambda progress: seen.append((progress.done, progress.total)) if progress.text == "running the teacher once" else None
    trained(context, cache=str(tmp_path / "answers"))
    assert seen == [(8, 40), (16, 40), (24, 40), (32, 40), (40, 40)]
    assert any("ran the teacher on 40 items" in note for note in context.notes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_a_complete_file_or_none(tmp_path: Path) -> None:
    path, context = tmp_path / "answers", run(points(8))

    def fill() -> None:
        path.unlink(missing_ok=True)
        opened(context, path).close()

    assert interrupted_at_blocks(fill) == []
    for moment in moments(fill)[::3]:
        interrupted(fill, moment)
        if path.exists():
            assert Reader(path).manifest["rows"] == 8


@pytest.mark.slow
def test_a_stream_is_gone_through_like_any_data(tmp_path: Path) -> None:
    x, y = points()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return zip(x.split(8), y.split(8), strict=True)

    teacher = CountingTeacher()
    trained(run(batches, teacher), cache=str(tmp_path / "answers"))
    assert teacher._asked == 5
