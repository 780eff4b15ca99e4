"""What a config of a stranger may ask for."""

import pytest

from kdkit.errors import KdError
from kdkit.storage.size_limit import check_config


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "hf-hub:evil/repository"},
        {"model_args": {"checkpoint_path": "labels.txt"}},
        {"backbone_config": {"use_pretrained_backbone": True}},
        {"cache_dir": "/tmp/elsewhere"},
        {"num_labels": 1_000_000},
        {"layers": [{"num_hidden_layers": 10**6}]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_a_config_that_fetches_or_asks_for_more_than_the_tensors_hold_is_refused(config):
    with pytest.raises(KdError, match=next(iter(config))):
        check_config(config, 64, "kd.json: config")


def test_a_config_of_a_usual_model_is_accepted():
    check_config({"hidden_size": 4096, "num_labels": 1000, "rope_theta": 500_000, "pretrained": False, "architecture": "resnet50"}, 64, "kd.json: config")
