"""The catalogue of light students: as large as published, any image size, saved and loaded anywhere."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.storage import folder
from kdkit.tasks import Classification, TokenClassification
from kdkit_distill.students.catalogue import CATALOGUE, of_catalogue
from kdkit_distill.students.spec import read

ROOT = Path(__file__).parents[4]

PUBLISHED = {
    "mobilenet-v1": 4_231_976,
    "mobilenet-v2": 3_504_872,
    "efficientnet-b0": 5_288_548,
    "squeezenet": 1_235_496,
    "shufflenet-v2": 2_278_604,
    "mnasnet": 4_383_312,
    "xception": 22_855_952,
}
"""Parameters of width 1 with 1000 classes, as the papers round them and the reference implementations count them."""
WIDTHS = {"mobilenet-v1": 0.25, "mobilenet-v2": 0.25, "efficientnet-b0": 0.25, "squeezenet": 0.25, "shufflenet-v2": 0.5, "mnasnet": 0.35, "xception": 0.1}


def maker(name: str) -> Any:
    module, _, function = CATALOGUE[name].partition(":")
    return getattr(importlib.import_module(f"kdkit_distill.students.{module}"), function)


def teacher(channels: int = 3, classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, classes))


def context(channels: int = 3, size: int = 32, **objects: Any) -> Context:
    return Context(Classification(), objects={"train": adopt_data(torch.randn(4, channels, size, size), 4), **objects})


def logits(output: Any) -> Tensor:
    return getattr(output, "logits", output)


def parameters(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def test_every_net_of_the_catalogue_is_counted() -> None:
    assert PUBLISHED.keys() == CATALOGUE.keys() == WIDTHS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_it_has_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta") if not CATALOGUE[name].startswith("published") else torch.device("cpu"):
        assert parameters(maker(name)()) == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
@pytest.mark.parametrize("name", CATALOGUE)
def test_it_answers_and_learns_on_small_images(name: str, channels: int, size: int) -> None:
    run = context(channels, size)
    net = of_catalogue(name, WIDTHS[name], teacher(channels), run).train()
    output = run.task.prediction(run.example.call(net), run.example)
    assert output.shape == (4, 7)
    nn.functional.cross_entropy(output, torch.arange(4)).backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in net.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_its_last_maps_keep_about_four_pixels_and_are_small_where_images_are_large(name: str) -> None:
    seen: list[tuple[int, ...]] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            seen.append(tuple(output.shape[2:]))

    for size, low, high in ((32, 4, 4), (28, 3, 4), (224, 7, 14)):
        net = maker(name)(classes=2, width=WIDTHS[name], size=size).eval()
        seen.clear()
        for module in net.modules():
            module.register_forward_hook(look)
        with torch.no_grad():
            net(torch.zeros(1, 3, size, size))
        assert low <= min(min(shape) for shape in seen) <= high, size


@pytest.mark.slow
def test_a_wider_net_has_more_parameters_and_the_widths_of_the_paper_where_it_names_them() -> None:
    for name in ("mobilenet-v2", "squeezenet", "mnasnet", "efficientnet-b0"):
        narrow, wide = (parameters(maker(name)(width=width)) for width in (0.5, 1.5))
        assert narrow < PUBLISHED[name] < wide
    with torch.device("meta"):
        assert [parameters(maker("shufflenet-v2")(width=width)) for width in (0.5, 1.5, 2.0)] == [1_366_792, 3_503_624, 7_393_996]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet-v1", "mobilenet-v2", "efficientnet-b0"])
def test_batch_norm_remembers_more_than_one_batch_and_dropout_leaves_something(name: str) -> None:
    net = maker(name)(width=0.25, size=32)
    assert {module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    assert all(module.p <= 0.2 for module in net.modules() if isinstance(module, nn.Dropout))


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_a_fresh_net_lets_the_signal_through(name: str) -> None:
    torch.manual_seed(0)
    net = maker(name)(classes=5, width=WIDTHS[name], size=32).train()
    seen: list[Tensor] = []
    head = [module for module in net.modules() if isinstance(module, nn.Linear | nn.Conv2d) and 5 in module.weight.shape[:1]][-1]
    head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net(torch.randn(8, 3, 32, 32))
    assert seen[0].std(0).mean() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_a_fresh_student_says_in_eval_mode_what_it_says_in_train_mode(name: str) -> None:
    torch.manual_seed(0)
    pixels = torch.randn(16, 3, 32, 32)
    run = Context(Classification(), objects={"train": adopt_data([pixels], 16)})
    net = of_catalogue(name, WIDTHS[name], teacher(3, 5), run)
    assert not any(module.training for module in net.modules())
    assert {module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)} <= {0.1}
    with torch.no_grad():
        calm = logits(Batch((pixels,)).call(net))
        for module in net.modules():
            module.training = isinstance(module, nn.BatchNorm2d)
        busy = logits(Batch((pixels,)).call(net))
    # running variances are of n - 1
    assert (calm - busy).norm() < 0.2 * (busy - busy.mean(0)).norm()


def test_a_single_example_leaves_the_statistics_of_batch_norm_alone() -> None:
    run = Context(Classification(), objects={"train": adopt_data([torch.randn(1, 3, 32, 32)], 1)})
    net = of_catalogue("mnasnet", 0.35, teacher(3, 5), run)
    assert all(bool((module.running_var == 1).all()) for module in net.modules() if isinstance(module, nn.BatchNorm2d))  # type: ignore[union-attr]


def test_a_logit_of_squeezenet_can_be_negative() -> None:
    torch.manual_seed(0)
    assert (maker("squeezenet")(20, width=0.25, size=32).eval()(torch.randn(2, 3, 32, 32)) < 0).any()


def test_a_student_has_the_teachers_classes_and_the_batchs_channels() -> None:
    net = read("squeezenet=0.25").make(teacher(2, 9), "teacher", context(2))
    assert net(torch.zeros(3, 2, 32, 32)).shape == (3, 9)


@pytest.mark.slow
def test_it_takes_images_by_the_name_that_transformers_gives_them() -> None:
    pixels = torch.randn(2, 3, 32, 32)
    run = Context(Classification(), objects={"train": adopt_data([{"pixel_values": pixels}], 2)})

    class Named(nn.Module):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return pixel_values.flatten(1)[:, :5]

    for name in ("mobilenet-v2", "squeezenet"):
        net = of_catalogue(name, 0.25, Named(), run)
        assert logits(Batch(kwargs={"pixel_values": pixels}).call(net)).shape == (2, 5)


@pytest.mark.slow
def test_the_same_seed_draws_the_same_student_whatever_was_drawn_before() -> None:
    one = read("mnasnet=0.35").make(teacher(), "teacher", context())
    torch.rand(3)
    other = read("mnasnet=0.35").make(teacher(), "teacher", context())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def refused(name: str, net: nn.Module, run: Context) -> str:
    with pytest.raises(KdError) as caught:
        of_catalogue(name, 1.0, net, run)
    return str(caught.value)


def test_what_it_cannot_look_at_or_say_is_refused_plainly() -> None:
    flat = Context(Classification(), objects={"train": adopt_data(torch.randn(4, 28, 28), 4)})
    assert "x[:, None]" in refused("squeezenet", teacher(), flat)
    assert "16 pixels" in refused("squeezenet", teacher(), context(size=8))
    likely = Context(Classification(probabilities=True), objects=context().objects)
    assert "probabilities" in refused("squeezenet", nn.Sequential(teacher(), nn.Softmax(-1)), likely)
    tokens = Context(TokenClassification(), objects=context().objects)
    assert "one vector of logits for each image" in refused("squeezenet", nn.Conv2d(3, 2, 1), tokens)


RESTORE = """
import sys
import torch
from safetensors.torch import save_file
from kdkit.storage import folder as store
said = {}
for name in sys.argv[2:]:
    net = store.load(f"{sys.argv[1]}/{name}")[0].eval()
    with torch.no_grad():
        output = net(torch.load(f"{sys.argv[1]}/pixels.pt"))
    said[name] = getattr(output, "logits", output).contiguous()
save_file(said, f"{sys.argv[1]}/outputs.safetensors")
"""


@pytest.mark.slow
def test_another_process_loads_every_student_to_the_last_bit_without_a_skeleton(tmp_path: Path) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    torch.save(pixels, tmp_path / "pixels.pt")
    stated = {}
    for name in CATALOGUE:
        net = of_catalogue(name, WIDTHS[name], teacher(), context())
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.normal_()
        folder.save(tmp_path / name, net, teacher(), {})
        with torch.no_grad():
            stated[name] = logits(net(pixels))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ran = subprocess.run([sys.executable, "-c", RESTORE, str(tmp_path), *CATALOGUE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    again = load_file(tmp_path / "outputs.safetensors")
    assert [name for name in CATALOGUE if not torch.equal(again[name], stated[name])] == []
