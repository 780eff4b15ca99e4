"""Real images, sounds and trained weights for the benchmarks, of `tests.fixtures.data_folder`."""

from __future__ import annotations

import gzip
import io
import sys

import numpy as np
import torch
from torch import Tensor, nn

from tests.fixtures.data_folder import DATA


def fashion(split: str, items: int | None = None) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST: images (items, 1, 28, 28) in standard units, and classes; `split` is "train" or "t10k"."""
    pixels = np.frombuffer(gzip.decompress((DATA / f"fashion-{split}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:items]
    classes = np.frombuffer(gzip.decompress((DATA / f"fashion-{split}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)[:items]
    return (torch.from_numpy(pixels.copy()).float() / 255 - 0.2860) / 0.3530, torch.from_numpy(classes.copy()).long()


def cifar() -> dict[str, Tensor]:
    """The lossless CIFAR-10 images: train_x (4000, 3, 32, 32), train_y, test_x (1000, ...), test_y, scaled as the ResNets want them."""
    held, prepared = np.load(DATA / "cifar10_lossless5k.npz"), _resnets().prep
    return {f"{part}_x": prepared(held[f"{part}_x"]) for part in ("train", "test")} | {
        f"{part}_y": torch.from_numpy(held[f"{part}_y"]).long() for part in ("train", "test")
    }


def cifar_jpeg(items: int, seed: int = 0, classes: tuple[int, ...] = tuple(range(10))) -> tuple[Tensor, Tensor]:
    """CIFAR-10 images of these classes as JPEG: `items` drawn from the 50 000 for training, which stand there class by class."""
    from PIL import Image

    held = np.load(DATA / "cifar10_jpeg60k.npz")
    stream, offsets, labels = held["jpeg"], held["offsets"], held["labels"]
    known = np.flatnonzero(np.isin(labels[:50_000], classes))
    chosen = np.random.default_rng(seed).permutation(known)[:items]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(stream[offsets[i] : offsets[i + 1]].tobytes()))) for i in chosen])
    return _resnets().prep(pixels), torch.from_numpy(labels[chosen].astype(np.int64))


def cifar_resnet(depth: int) -> nn.Module:
    """A trained CIFAR ResNet of 20, 32 or 56 layers."""
    from safetensors.torch import load_file

    net = _resnets().ResNetC((depth - 2) // 6)
    net.load_state_dict(load_file(DATA / f"cifar_resnet{depth}.safetensors"))
    return net.eval()


def fresh_resnet(depth: int, seed: int) -> nn.Module:
    """The same net, untrained."""
    torch.manual_seed(seed)
    return _resnets().ResNetC((depth - 2) // 6)


def fruits() -> dict[str, Tensor]:
    """Apple, cherry, tomato: train_x (1500, 3, 32, 32), train_y, test_x (750, ...), test_y, scaled like CIFAR."""
    held, prepared = np.load(DATA / "fruits32.npz"), _resnets().prep
    return {key: prepared(held[key]) if key.endswith("_x") else torch.from_numpy(held[key]).long() for key in ("train_x", "train_y", "test_x", "test_y")}


def spoken_digits() -> tuple[Tensor, Tensor, Tensor]:
    """Free spoken digits at 8 kHz: log spectrograms (3000, 1, 64, 64), classes, and which are of the official test set (take < 5)."""
    held = dict(np.load(DATA / "fsdd_8k.npz"))
    rows = [_log_spectrogram(held["pcm"][start:stop]) for start, stop in zip(held["offsets"], held["offsets"][1:], strict=False)]
    return torch.stack(rows), torch.from_numpy(held["digit"].astype(np.int64)), torch.from_numpy(held["take"] < 5)


def _log_spectrogram(pcm: np.ndarray, frames: int = 64) -> Tensor:
    """(1, 64 bands, frames): windows of 32 ms every 16 ms, cut or padded to `frames`, in standard units."""
    wave = torch.from_numpy(pcm.astype(np.float32)) / 32768
    wave = torch.nn.functional.pad(wave, (0, max(0, 128 * (frames + 1) - len(wave))))
    power = torch.stft(wave, 256, 128, window=torch.hann_window(256), return_complex=True).abs().square()[:128]
    bands = torch.log(power.unflatten(0, (64, 2)).mean(1) + 1e-6)[:, :frames]
    return ((bands - bands.mean()) / (bands.std() + 1e-6))[None]


def _resnets():  # type: ignore[no-untyped-def]
    sys.path.insert(0, str(DATA))
    import cifar_resnet

    return cifar_resnet
