"""The optimizer against NumPy's singular value decomposition."""

import keras
import numpy as np
import pytest

from lab.model.muon import NEWTON_SCHULZ, Muon, orthogonalize, rounded_products


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_values(shape):
    rng = np.random.default_rng(0)
    rank = min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in shape)
    matrix = (u * np.geomspace(1, 0.05, rank)) @ v.T
    core = u.T @ np.array(orthogonalize(keras.ops.convert_to_tensor(matrix, "float32"))) @ v
    assert np.diag(core).min() >= 0.68 and np.diag(core).max() <= 1.21
    np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-3)


@pytest.mark.parametrize("rounded", [None, "device"])
@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (16, 16)])
def test_orthogonalize_is_the_published_iteration_on_the_whole_matrix(shape, rounded):
    a, b, c = NEWTON_SCHULZ
    matrix = np.random.default_rng(2).standard_normal(shape)
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result = np.array(orthogonalize(keras.ops.convert_to_tensor(matrix, "float32"), scale=0.5, rounded=rounded))
    np.testing.assert_allclose(result, 0.5 * x, atol=1e-4)


def test_in_bfloat16_the_singular_values_come_out_as_level():
    rng = np.random.default_rng(4)
    u, v = (np.linalg.qr(rng.standard_normal((n, 32)))[0] for n in (288, 32))
    matrix = keras.ops.convert_to_tensor((u * np.geomspace(1, 0.02, 32)) @ v.T, "float32")
    result = orthogonalize(matrix, rounded="bfloat16")
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    values = np.linalg.svd(np.array(result), compute_uv=False)
    assert values.min() >= 0.66 and values.max() <= 1.24


def test_products_are_made_in_the_networks_precision():
    assert rounded_products("float32") != "bfloat16"
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert rounded_products("float32") == "bfloat16"


@pytest.mark.parametrize("shape", [(27, 8), (108, 8), (288, 32), (32, 288)])
@pytest.mark.parametrize("rounded", ["device", "bfloat16"])
def test_orthogonalize_stays_bounded_where_products_are_rounded_to_bfloat16(shape, rounded, monkeypatch):
    """Also for a gradient of nearly rank one: rounded, it would make steps that are thousands of times too long."""
    from lab.model import muon

    rng, short = np.random.default_rng(3), lambda x: keras.ops.cast(keras.ops.cast(x, "bfloat16"), "float32")
    matmul, num = keras.ops.matmul, min(shape)
    if rounded == "device":
        monkeypatch.setattr(muon.ops, "matmul", lambda a, b: matmul(short(a), short(b)))
    spectra = [np.geomspace(1, smallest, num) for smallest in (1e-2, 1e-4, 1e-6)]
    spectra += [np.r_[1, rest * rng.random(num - 1)] for rest in (0.3, 0.1, 0.03, 0.01, 0.003, 0.001) for _ in range(3)]
    for spectrum in spectra:
        u, v = (np.linalg.qr(rng.standard_normal((n, num)))[0] for n in shape)
        matrix = keras.ops.convert_to_tensor((u * spectrum) @ v.T, "float32")
        result = np.array(orthogonalize(matrix, rounded=rounded))
        assert np.linalg.svd(result, compute_uv=False).max() < 1.3


def test_the_first_step_is_the_orthogonalized_gradient_or_adams_for_biases():
    rng = np.random.default_rng(1)
    kernel, bias = keras.Variable(np.zeros((3, 3, 2, 4))), keras.Variable(np.zeros(4))
    gradient = rng.standard_normal((3, 3, 2, 4)).astype("float32")
    Muon(0.1).apply([keras.ops.convert_to_tensor(gradient), keras.ops.ones(4)], [kernel, bias])
    direction = np.array(orthogonalize(keras.ops.convert_to_tensor(gradient.reshape(18, 4))))
    expected = -0.1 * 0.2 * np.sqrt(18) * direction.reshape(3, 3, 2, 4)
    np.testing.assert_allclose(kernel.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(bias.numpy(), -0.1, rtol=1e-4)
