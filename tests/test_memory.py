"""What layers take, the account of a training step's memory against hand counts and records, and the planner."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import conv3d_analysis as conv3d
import unet_segmentation as unet
from benchmarks import train_step
from lab.model import memory

CONFIG = {
    "input_shape": (16, 16, 16, 1),
    "filters": 4,
    "kernel_size": 3,
    "downsampling": "late",
    "precision": "float32",
    "batch_size": 1,
    "optimizer": "adam",
}
STUDY = json.loads((Path(conv3d.__file__).parent / "benchmarks" / "results" / "conv3d_study.json").read_text())
MEASURED = [row for row in STUDY["rows"] if row["status"] == "measured"]


# Arithmetic


@pytest.mark.parametrize("ndim", [2, 3])
def test_multiply_adds_are_those_counted_one_by_one(ndim):
    """A convolution of ones over ones sums one product per multiply-add; valid padding, so that none is with a zero."""
    import keras
    from keras import layers

    conv, transposed = [(layers.Conv2D, layers.Conv2DTranspose), (layers.Conv3D, layers.Conv3DTranspose)][ndim - 2]
    ones = {"kernel_initializer": "ones"}
    for layer in (conv(3, 3, strides=2, **ones), conv(4, 3, groups=2, **ones), transposed(3, 2, strides=3, **ones)):
        inputs = keras.Input((*range(5, 5 + ndim), 2))
        model = keras.Model(inputs, layer(inputs))
        counted = np.sum(model.predict(np.ones((2, *inputs.shape[1:])), verbose=0), dtype=float)
        assert memory.layer_costs(model, batch_size=2)[-1]["multiply_adds"] == counted


def test_costs_of_the_unet_are_those_of_a_hand_count():
    """Two 3x3 convolutions per block; per decoder step a 2x2 transposed one from twice the width at half the size."""
    macs, width_in = 0, 1
    for level in range(4):
        pixels, width = (128 >> level) ** 2, 32 << level
        macs += pixels * 9 * (width_in * width + width * width)
        if level < 3:
            macs += pixels * 9 * (2 * width * width + width * width) + (pixels // 4) * 4 * 2 * width * width
        width_in = width
    macs += 128**2 * 32
    rows = memory.layer_costs(unet.build_unet())
    assert sum(row["multiply_adds"] for row in rows) == macs
    assert sum(row["parameters"] for row in rows) == 1_925_025


def test_a_training_step_is_three_forward_passes_but_for_the_first_layer():
    model = unet.build_unet((16, 16, 16, 1), filters=2)
    rows = {row["name"]: row["multiply_adds"] for row in memory.layer_costs(model, 5)}
    assert train_step.training_multiply_adds(model, 5) == 3 * sum(rows.values()) - rows["encoder1_conv1"]


def test_activation_bytes_follow_batch_and_precision():
    single, double = (memory.layer_costs(conv3d.make_model(CONFIG), batch) for batch in (1, 2))
    half = memory.layer_costs(conv3d.make_model({**CONFIG, "precision": "mixed_bfloat16"}))
    for a, b, c in zip(single, double, half, strict=True):
        assert a["activation_bytes"] == 4 * math.prod(a["output_shape"]) == b["activation_bytes"] / 2
        assert c["activation_bytes"] == a["activation_bytes"] / (1 if c["name"] in ("volume", "mask") else 2)


def test_kernel_size_changes_weights_and_arithmetic_but_no_activation():
    small, large = (memory.layer_costs(conv3d.build_conv3d(kernel_size=kernel)) for kernel in (3, 7))
    assert [row["activation_bytes"] for row in small] == [row["activation_bytes"] for row in large]
    convolutions = [(a, b) for a, b in zip(small, large, strict=True) if "_conv" in a["name"]]
    assert all(b["multiply_adds"] * 27 == a["multiply_adds"] * 343 for a, b in convolutions)


def test_open_input_shape_is_refused():
    with pytest.raises(ValueError, match="fixed input shape"):
        memory.layer_costs(unet.build_unet((None, None, 1)))


# The account


def two_layers():
    import keras
    from keras import layers

    inputs = keras.Input((8, 8, 8, 1))
    hidden = layers.Conv3D(16, 1, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, layers.Conv3D(1, 1, name="mask")(hidden))


def test_live_memory_of_two_layers_is_that_of_a_hand_replay():
    """The backward pass of the second layer holds the input, both outputs, the loss's copies and all gradients."""
    voxels, batch = 8**3 * 4, 3
    images, target, mask, mask_gradient = 1, 1, 0, 1  # the mask is linear: freed once the loss is known
    hold = images + target * 0 + mask + mask_gradient + 16 + 16  # hidden output and its gradient
    second = batch * voxels * hold + 4 * (16 + 1)  # and the gradient of the second layer's weights
    assert memory.training_memory(two_layers(), batch)["live"] * memory.MIB == pytest.approx(second)


def test_weights_are_updated_one_layer_later_and_with_muon_after_all_others():
    def updates(late):
        operations = memory.step_operations(conv3d.build_conv3d(), 1, late)
        return [any(name.startswith("update") for name in writes) for writes, _ in operations]

    soon, late = updates(False), updates(True)
    num_layers = 13
    assert sum(soon) == sum(late) == num_layers
    assert late[-2 * num_layers :] == [False, True] * num_layers and soon[-2 * num_layers :] != late[-2 * num_layers :]
    totals = [memory.training_memory(conv3d.build_conv3d(), 4, optimizer) for optimizer in ("sgd", "adam", "muon")]
    assert totals[0]["pool"] < totals[1]["pool"] < totals[2]["pool"]


@pytest.mark.parametrize("late", [False, True])
def test_every_tensor_is_allocated_once_and_freed_once_but_for_the_slots_which_stay(late):
    for model in (conv3d.build_conv3d(), unet.build_unet(), unet.build_unet((16, 16, 16, 1), 4)):
        alive = set()
        for name, size in memory.step_events(memory.step_operations(model, 1, late, slots=2)):
            assert (name in alive) == (size < 0)
            alive ^= {name}
        assert len(alive) == 2 * sum(bool(layer.weights) for layer in model.layers)
        assert all(name.startswith(memory.SLOT) for name in alive)


def test_pool_cuts_reuses_and_doubles():
    def touched(*requests):
        return memory.pool_bytes([(name, mib * memory.MIB) for name, mib in requests]) / memory.MIB

    assert touched(("a", 1), ("a", -1), ("b", 1)) == 1  # the same chunk again
    assert touched(("a", 1), ("b", 1), ("c", 1)) == 3  # a second region
    assert touched(("a", 1), ("b", 1), ("a", -1), ("b", -1), ("c", 2)) == 2  # joined
    assert touched(("a", 5), ("a", -5), ("b", 3), ("c", 3)) == 6  # cut, then not


@pytest.mark.parametrize(
    ("flags", "width", "channels", "wanted"),
    [  # seen in oneDNN's allocations, in MiB: 3^3 kernels, 32 x 32 rows, two threads, bfloat16
        ([], 48, (8, 8), 4.5),
        ([], 48, (1, 8), 3.0),
        ([], 48, (16, 32), 6.0),
        (["amx_bf16"], 48, (8, 8), 7.0),
        (["amx_bf16"], 48, (1, 8), 7.0),
        (["amx_bf16"], 48, (32, 16), 11.0),
        (["amx_bf16"], 48, (64, 64), 14.0),
        (["amx_bf16"], 16, (8, 8), 3.0),
        (["amx_bf16"], 96, (8, 8), 14.0),
    ],
)
def test_scratch_of_a_filter_gradient_in_bfloat16_is_the_one_that_was_seen(flags, width, channels, wanted):
    import keras
    from keras import layers

    inputs = keras.Input((32, 32, width, channels[0]), dtype="bfloat16")
    layer = layers.Conv3D(channels[1], 3, padding="same", dtype="bfloat16")
    model = keras.Model(inputs, layer(inputs))
    weights = 2 * (27 * channels[0] * channels[1] + channels[1])
    found = memory.workspace_bytes(model, cores=2, amx="amx_bf16" in flags) - weights
    assert found / memory.MIB == pytest.approx(wanted)


def test_memory_grows_with_voxels_filters_batch_optimizer_and_cores():
    def total(batch=1, optimizer="adam", processor=None, **changes):
        model = conv3d.make_model({**CONFIG, **changes})
        return memory.training_memory(model, batch, optimizer, processor)["total"]

    assert total(optimizer="sgd") < total() < total(filters=8) < total(filters=8, optimizer="muon")
    assert total(input_shape=(32, 32, 32, 1)) < total(input_shape=(64, 64, 64, 1), downsampling="early")
    assert total(input_shape=(64, 64, 64, 1), downsampling="early") < total(input_shape=(64, 64, 64, 1))
    assert total(batch=64) < total(batch=128)
    few, many = ({"cores": cores, "flags": ["amx_bf16"]} for cores in (2, 16))
    assert total(processor=few) == total(processor=many)  # float32 transposes nothing
    assert total(processor=few, precision="mixed_bfloat16") < total(processor=many, precision="mixed_bfloat16")


def test_margin_covers_every_row_of_the_recorded_study():
    assert len(MEASURED) >= 60
    assert max(row["measured_peak_mib"] / row["predicted_total_mib"] for row in MEASURED) < memory.MARGIN


def test_account_predicts_the_recorded_peaks():
    """As the study does, over its grid: no bias to speak of, neither with late nor with early downsampling."""
    processor = {"cores": 2, "flags": STUDY["provenance"].get("processor.flags", "avx512_bf16").split()}
    errors = {"late": [], "early": []}
    for row in MEASURED[::3]:
        model = conv3d.make_model({**row, "input_shape": tuple(row["input_shape"])})
        total = memory.training_memory(model, 1, "adam", processor)["total"]
        errors[row["downsampling"]].append(total / row["measured_peak_mib"] - 1)
    for found in errors.values():
        assert abs(np.mean(found)) < 0.04 and np.median(np.abs(found)) < 0.08 and np.max(np.abs(found)) < 0.2


def unet_row(side, filters, batch_size, precision, peak):
    return {
        "input_shape": (side, side, side, 1),
        "filters": filters,
        "batch_size": batch_size,
        "precision": precision,
        "measured_peak_mib": peak,
    }


# The peaks of benchmarks/memory_study.py over twelve steps, on 2 cores with AMX, until it has recorded them.
UNETS = [
    unet_row(32, 8, 4, "float32", 203),
    unet_row(48, 8, 2, "mixed_bfloat16", 270),
    unet_row(48, 16, 1, "float32", 277),
    unet_row(64, 8, 4, "mixed_bfloat16", 577),
    unet_row(64, 16, 2, "float32", 675),
]


@pytest.mark.parametrize("row", STUDY.get("unet", UNETS), ids=lambda row: f"{row['input_shape'][0]} {row['precision']}")
def test_account_predicts_the_peaks_of_the_unet_in_three_dimensions(row):
    import keras

    keras.config.set_dtype_policy(row["precision"])
    model = unet.build_unet(tuple(row["input_shape"]), row["filters"])
    processor = STUDY["machine"] if "unet" in STUDY else {"cores": 2, "flags": ["amx_bf16"]}
    total = memory.training_memory(model, row["batch_size"], "muon", processor)["total"]
    assert total == pytest.approx(row["measured_peak_mib"], rel=0.15)


# Where it does not hold


def test_caveat_names_what_the_account_rests_on(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert memory.caveat() is None
    with monkeypatch.context() as patch:
        patch.setattr("keras.backend.backend", lambda: "jax")
        assert "jax may take" in memory.caveat()
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert "oneDNN off" in memory.caveat()
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "on arm64" in memory.caveat()


# The planner


def cube(sides, filters=8):
    return conv3d.make_model({**CONFIG, "input_shape": (*sides, 1), "filters": filters})


def needed(sides, batch=1):
    return memory.MARGIN * memory.training_memory(cube(sides), batch)["total"] / 1024


def test_largest_patch_fits_with_its_margin_and_the_next_one_does_not():
    sides, tried = memory.largest_patch(cube, budget_gib=0.5, batch_size=2)
    assert len(set(sides)) == 1 and needed(sides, 2) <= 0.5 < needed([side + 16 for side in sides], 2)
    assert [row["fits"] for row in tried] == sorted((row["fits"] for row in tried), reverse=True)
    assert {sides} < {row["sides"] for row in tried} and all(row["fits"] == (row["gib"] <= 0.5) for row in tried)


def test_a_patch_is_cut_off_where_the_data_end():
    sides, _ = memory.largest_patch(cube, 0.5, shape=(30, 200, 200), divisor=8)
    assert sides[0] == 32 < sides[1] == sides[2] <= 200
    assert memory.largest_patch(cube, 100, shape=(30, 20, 17), divisor=8)[0] == (32, 24, 24)  # all of it


def test_no_patch_at_all_where_nothing_fits():
    sides, tried = memory.largest_patch(cube, budget_gib=0.01)
    assert sides is None and [row["sides"] for row in tried] == [(16, 16, 16)]


# Memory in use


def test_memory_in_use_is_known_without_proc(tmp_path):
    """In a process of its own, which touches 64 MiB and gives them back: the peak stays, what is resident does not."""
    code = (
        "import sys, numpy as np; from pathlib import Path; from lab.model import memory\n"
        "before = memory.resident_memory()\n"
        "kept = np.ones(2**23); during = memory.resident_memory(); del kept\n"
        "print(before, during, memory.peak_memory(Path(sys.argv[1])), memory.peak_memory())"
    )
    command = [sys.executable, "-c", code, tmp_path / "no such file"]
    done = subprocess.run(command, cwd=Path(conv3d.__file__).parent, check=True, capture_output=True, text=True)
    before, during, peak, peak_here = map(int, done.stdout.split())
    inexact = 2**20  # the system's counters lag behind
    assert during - before > 2**26 - inexact and min(peak, peak_here) > during - inexact
    assert 2**26 < memory.free_memory() < 2**50


def test_what_would_not_fit_into_memory_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="images would take .* GiB"):
        memory.check_room(2**60, "images")
    monkeypatch.setattr(memory, "free_memory", lambda: 2**30)
    memory.check_room(2**30, "images")
    with pytest.raises(ValueError, match="volumes would take 2.0 GiB of memory, of which 1.0 GiB are free"):
        memory.check_room(2**31, "volumes")


def test_a_training_step_that_would_not_fit_is_refused(monkeypatch):
    network = unet.build_unet((16, 16, 1), filters=2)
    needed = memory.training_memory(network, 2, "adam", memory.backend.processor())["total"] * memory.MIB
    monkeypatch.setattr(memory, "free_memory", lambda: needed)
    memory.check_step(network, 2, "adam", "images")
    monkeypatch.setattr(memory, "free_memory", lambda: needed / 2)
    with pytest.raises(ValueError, match="a training step of 2 images would take"):
        memory.check_step(network, 2, "adam", "images")


def test_importing_the_account_imports_no_keras():
    code = "import sys; from lab.model import memory; assert not {'keras', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(conv3d.__file__).parent)
