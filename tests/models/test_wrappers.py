"""Wrappers: what is unwrapped, and what is refused with its remedy."""

import copy
import types

import pytest
import torch
from torch import nn

import kdkit
from kdkit import KdError
from kdkit.models.wrappers import unwrap_model, unwrap_parts
from kdkit.session.adoption import adopt_model, adopt_teacher
from kdkit.testing import zoo


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


X = torch.zeros(2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model))])
def test_wrapped_models_are_unwrapped(wrap):
    plain = net()
    assert adopt_model(wrap(plain)) is plain
    assert adopt_teacher(wrap(plain)) is plain


def test_a_scripted_model_is_a_teacher_that_answers_and_has_no_layers():
    plain = net()
    teacher = adopt_teacher(torch.jit.trace(plain, X))
    assert torch.equal(teacher(X), plain(X))
    assert not list(teacher.parameters())


def test_wrapped_parts_are_unwrapped_in_place():
    plain = net()
    outer = nn.Sequential(torch.compile(plain), nn.Sequential(nn.DataParallel(nn.Linear(3, 2))))
    names = [name for name, _ in unwrap_parts(outer).named_parameters()]
    assert names == ["0.0.weight", "0.0.bias", "0.2.weight", "0.2.bias", "1.0.weight", "1.0.bias"]
    assert unwrap_model(plain) is plain


def trainer_of(model: nn.Module, folder) -> object:
    from transformers import Trainer, TrainingArguments

    class Own(Trainer):
        """A class of the user's."""

    return Own(model, TrainingArguments(str(folder), report_to="none", use_cpu=True))


def pipeline_of(model: nn.Module, folder) -> object:
    from transformers import pipeline

    return pipeline("text-classification", model=model, tokenizer=zoo.tokenizer(), device="cpu")


@pytest.mark.slow
def test_a_module_of_lightning_is_compressed_also_after_its_trainer_trained_it(tmp_path):
    from pytorch_lightning import LightningModule, Trainer

    class Own(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module, data = Own().train(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 4), torch.arange(16) % 3), 8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(module, data)
    assert adopt_model(trainer) is module
    session = kdkit.Session(module, train=data, eval=data)
    session.run("prune channels --ratio 0.5\ntune finetune --epochs 1")
    session.save(tmp_path / "small")
    loaded = kdkit.Session.open(tmp_path / "small", skeleton=Own)
    assert torch.equal(loaded.pop()(X), session.pop()(X))


def test_a_fitted_net_of_skorch_gives_its_model_and_others_are_named():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from skorch import NeuralNetClassifier

    estimator = NeuralNetClassifier(net, criterion=nn.CrossEntropyLoss, max_epochs=1, verbose=0)
    with pytest.raises(KdError, match="NeuralNetClassifier is not fitted"):
        adopt_model(estimator)
    estimator.fit(torch.randn(20, 4).numpy(), (torch.arange(20) % 3).numpy())
    assert adopt_model(estimator) is estimator.module_
    with pytest.raises(KdError, match="a chain of 2 steps") as caught:
        adopt_model(make_pipeline(StandardScaler(), estimator))
    assert "['neuralnetclassifier']" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("make", [trainer_of, pipeline_of])
def test_a_trainer_or_a_pipeline_of_transformers_gives_its_model(make, tmp_path):
    model = zoo.tiny_bert()
    holder = make(model, tmp_path)
    assert adopt_model(holder) is model
    assert adopt_teacher(holder) is model


def test_an_object_of_others_that_holds_a_model_is_named_with_its_attribute():
    with pytest.raises(KdError, match="holds one") as caught:
        adopt_model(types.SimpleNamespace(model=net()))
    assert caught.value.hints == ("give its attribute .model",)


def prepared() -> nn.Module:
    from torch.ao import quantization

    model = net()
    model.qconfig = quantization.get_default_qconfig("x86")
    return quantization.prepare(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "says", "remedy"),
    [
        (lambda: torch.jit.script(net()), "scripted model", "the nn.Module that it was made of"),
        (lambda: torch.jit.trace(net(), X), "scripted model", "the nn.Module that it was made of"),
        (lambda: nn.Sequential(torch.jit.script(net())), "its part 0 is a scripted model", "the nn.Module there"),
        (lambda: torch.export.export(net(), (X,)), "exported program", "the nn.Module that it was made of"),
        (lambda: torch.export.export(net(), (X,)).module(), "exported program", "the nn.Module that it was made of"),
        (prepared, "prepared for quantization", "the float model"),
        (lambda: nn.Linear, "the class Linear is not a model", "make an instance"),
        (lambda: net().state_dict(), "these are the weights of a model", "load_state_dict"),
        (lambda: "net.pt", "is not a model", "%kd load"),
        (lambda: [net()], "a list of modules", "nn.Sequential"),
        (lambda: lambda x: x, "is a function, not a model", "nn.Module"),
        (lambda: copy.copy(type("Trainer", (), {"model": net()})()), "holds one", ".model"),
        (lambda: None, "NoneType is not a model", "nn.Module"),
    ],
)
def test_what_is_no_usable_model_is_refused_with_its_remedy(make, says, remedy):
    with pytest.raises(KdError) as caught:
        adopt_model(make())
    assert says in caught.value.message
    assert any(remedy in hint for hint in caught.value.hints)


def test_a_class_without_a_module_is_named_as_no_model():
    with pytest.raises(KdError, match="is not a model"):
        adopt_model(type("Odd", (), {"__module__": None})())
