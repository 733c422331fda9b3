"""The kernels of oneDNN by which the lab predicts on a processor with AVX2 and without AVX-512."""

import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lab.system import backend, library_limits

ROOT = Path(__file__).resolve().parent.parent
AS_WITH_AVX2_ALONE = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ONEDNN_VERBOSE": "1",
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "KERAS_BACKEND": "tensorflow",
    "CUDA_VISIBLE_DEVICES": "-1",
}

# Every way in which the lab calls a network without training it. Each has first sides of its own, listed below.
EVERY_PREDICTION = """
import numpy as np
from lab.model import checkpoints, model_file, prediction, training
from lab.system import backend, processes

backend.import_keras()
import unet_segmentation

def predict(image, flips=False):
    *sides, channels = image.shape
    network = unet_segmentation.build_unet((*[None] * len(sides), channels), filters=8, depth=1)
    model = model_file.Model(network, {"size": [16] * len(sides), "divisor": 2})
    (*slabs,) = prediction.probabilities([model], image, [lambda tiles: tiles], flips)
    assert sum(map(len, slabs)) == len(image)
    return network

predict(np.zeros((20, 56, 3), np.float32))
predict(np.zeros((28, 40, 1), np.float32), flips=True)
predict(np.zeros((18, 24, 32, 1), np.float32))
network = predict(np.zeros((300, 2000, 1), np.float32))  # three tiles, two at a time
for num, side in ((1, 32), (17, 36)):
    training.predict(network, np.zeros((num, side, side, 1), np.float32))
network.compile(training.choose_optimizer("adam", 1e-3, "constant", 1), training.choose_loss("ce"))
for num, side in ((1, 44), (17, 48)):
    images = np.zeros((num, side, side, 1), np.float32)
    batch = images[[0, 0]], images[[0, 0]]
    training.fit(network, lambda epoch: [batch], epochs=1, steps=1, validation=(images, images))
"""
FIRST_SIDES = {"ih20", "ih28", "id18", "ih300", "ih32", "ih36", "ih44", "ih48"}


def convolutions(printed: str) -> set[tuple[str, str]]:
    """(kernel, problem) of every convolution that was computed: ("brg_conv_fwd:avx2", "mb2_ic1oc8_ih20oh20kh3...").

    oneDNN's lines are `onednn_verbose,[...,]exec,cpu,convolution,KERNEL,...,PROBLEM,MILLISECONDS`.
    """
    return set(re.findall(r"onednn_verbose,.*\bexec,cpu,(?:de)?convolution,([^,]+),.*\b(mb\d[^,]*),", printed))


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="these kernels are for x86")
@pytest.mark.skipif("avx2" not in backend.processor()["flags"], reason="no AVX2, or a system that does not say so")
@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="it is TensorFlow that brings oneDNN")
def test_no_prediction_gets_the_kernels_of_a_single_picture():
    environment = {**os.environ, **AS_WITH_AVX2_ALONE}
    command = [sys.executable, "-c", EVERY_PREDICTION]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = convolutions(done.stdout)
    assert {side for side in FIRST_SIDES if any(f"_{side}o" in problem for _, problem in found)} == FIRST_SIDES
    assert not sorted(line for line in found if re.search("gemm|ref", line[0]))


@pytest.mark.parametrize(
    ("shape", "num"), [((1, 5, 7, 3), 2), ((2, 5, 7, 1), 2), ((3, 5, 7, 1), 3), ((1, 4, 5, 7, 1), 1)]
)
def test_a_picture_alone_gets_a_copy_and_a_volume_does_not(shape, num):
    images = np.random.default_rng(0).random(shape)
    filled = library_limits.fill_batch(images)
    np.testing.assert_array_equal(filled, images[np.minimum(range(num), len(images) - 1)])
