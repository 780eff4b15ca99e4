"""Benchmark 6: CIFAR ResNet-56 teaches a MobileNetV2 from the catalogue, against the same net on labels alone.

    python -m tests.benchmarks.bench_mobilenet [--images 6000] [--epochs 6]

The transfer set is JPEG images, on which the teacher loses ten points; the test is 1000 lossless ones. Teacher's answers are cached.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch

from kdkit import Session, compare_with
from tests.benchmarks.real_data import cifar, cifar_jpeg, cifar_resnet
from tests.benchmarks.timing import keep
from tests.fixtures.data_folder import absent


def main(images: int, epochs: int, student: str) -> None:
    if missing := absent("cifar_resnet56.safetensors", "cifar10_jpeg60k.npz"):
        print(f"mobilenet: skipped, {missing}")
        return
    torch.set_num_threads(1)
    held = cifar()
    session = Session(
        cifar_resnet(56), train=cifar_jpeg(images), eval=(held["test_x"], held["test_y"]), measures=("quality", "agreement", "parameters", "macs"), batch_size=64
    )
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        version = session.run(f"distill soft --student {student} --epochs {epochs} --learning-rate 0.002 --cache {folder}/teacher")
        found = compare_with(session, "same --alpha 0", seeds=1)
    rows = [[note] for note in (*version.notes, found.summary(), *(f"control: {note}" for note in found.control[0].notes))]
    facts = {
        "n": f"1 seed, {images} images, {epochs} epochs",
        "student": f"{student}, {version['parameters'] / 1e6:.2f} M parameters, {version['macs'] / 1e6:.1f} M MACs; teacher {session['@base']['macs'] / 1e6:.1f} M",
        "CPU s": f"{time.process_time() - began:.0f}",
        "accuracy": f"{version['accuracy']:.3f}, teacher {session['@base']['accuracy']:.3f}, agreement {version['agreement']:.3f}",
    }
    keep("mobilenet", facts, ("what the stage noted",), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--student", default="mobilenet-v2=0.5")
    given = parser.parse_args()
    main(given.images, given.epochs, given.student)
