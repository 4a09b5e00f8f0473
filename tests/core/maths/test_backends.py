"""One law for every equation: each array library gives what NumPy float64 gives, in values and in gradients."""

from __future__ import annotations

import inspect
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contextual_inversion.core.maths import context as core
from contextual_inversion.core.maths import norms, objective, schedule, similarity
from contextual_inversion.core.maths.objective import weighted_sum

KINDS = ("epsilon", "v_prediction", "sample")
HERE, THERE = np.array([0, 1, 3, 4]), np.array([0, 1, 4, 5])


def cases(seed: int) -> dict:
    """name -> (function, arguments). Every public function of arrays is here, see test_no_equation_is_left_out."""
    r = np.random.default_rng(seed)
    z, e, p = (r.normal(size=(3, 2, 4, 4)) for _ in range(3))
    betas = schedule.scaled_linear_betas(50)
    table = schedule.alpha_bar(betas)
    a = schedule.at_timesteps(table, np.array([2, 20, 49]))
    mask = (r.random((3, 1, 4, 4)) > 0.4).astype(np.float64)
    maps = [r.random((2, 3, n, 7)) for n in (16, 4)]
    others = [r.random((2, 3, n, 7)) for n in (16, 4)]
    out, ref = r.normal(size=(2, 7, 5)), r.normal(size=(2, 7, 5))
    v, g = r.normal(size=(2, 5)), r.normal(size=(2, 5))
    scalars = [np.asarray(x) for x in r.random(4)]
    found = {
        "alpha_bar": (schedule.alpha_bar, (betas,)),
        "at_timesteps": (schedule.at_timesteps, (table, np.array([4, 0, 49]))),
        "snr": (schedule.snr, (a,)),
        "weighted_sum": (lambda *x: weighted_sum(zip((1, 0.5, 0, 2.0), x, strict=True)), tuple(scalars)),
        "add_noise": (schedule.add_noise, (z, e, a)),
        "velocity": (schedule.velocity, (z, e, a)),
        "alpha_bar_of_sigma": (schedule.alpha_bar_of_sigma, (r.random(5),)),
        "flow_latents": (schedule.flow_latents, (z, a)),
        "diffusion_loss": (schedule.diffusion_loss, (p, e)),
        "diffusion_loss weighted": (
            lambda p, e, m, w: schedule.diffusion_loss(p, e, weight_map=m, sample_weight=w),
            (p, e, mask, r.random(3)),
        ),
        "attention_token_means": (core.attention_token_means, (maps[0],)),
        "row_norms": (norms.row_norms, (v,)),
        "vocabulary_norm": (partial(norms.vocabulary_norm, exclude=(1,)), (out[0],)),
        "rescale": (norms.rescale, (v, norms.row_norms(g))),
        "tangent": (norms.tangent, (g, v)),
        "unit": (similarity.unit, (v,)),
        "cosine": (similarity.cosine, (v, g)),
        "cosine_distance": (similarity.cosine_distance, (v, g)),
        "nearest_rows": (lambda v, t: similarity.nearest_rows(v, t, 3, exclude=[2])[1], (v, out[0])),
        "nearest_rows indices": (lambda v, t: similarity.nearest_rows(v, t, 3, exclude=[2])[0], (v, out[0])),
        "sim1": (lambda o: similarity.sim1(o, 2, 4), (out,)),
        "sim2": (lambda o, r: similarity.sim2(o, 2, r, 3), (out, ref)),
        "symmetric_kl": (similarity.symmetric_kl, (maps[0][0, 0, :, 0], maps[0][0, 0, :, 1])),
        "pixel_symmetric_kl": (similarity.pixel_symmetric_kl, (maps[0][0, 0], maps[0][0, 1])),
    }
    for kind in KINDS:
        found[f"prediction_target {kind}"] = (partial(schedule.prediction_target, kind), (z, e, a))
        found[f"min_snr_weight {kind}"] = (partial(schedule.min_snr_weight, kind), (a,))
        found[f"predicted_sample {kind}"] = (partial(schedule.predicted_sample, kind), (p, z, a))
        found[f"predicted_noise {kind}"] = (partial(schedule.predicted_noise, kind), (p, z, a))
    for axis in ("paper", "official"):
        found[f"embedding_loss {axis}"] = (
            lambda o, r, axis=axis: core.embedding_loss(o, r, HERE, THERE, axis=axis),
            (out, ref),
        )
        found[f"attention_loss {axis}"] = (
            lambda m1, m2, n1, n2, mode=axis: core.attention_loss([m1, m2], [n1, n2], HERE, THERE, mode=mode),
            (*maps, *others),
        )
    for mode in ("none", "core_window", "fixed_mean", "spherical"):
        found[f"enter {mode}"] = (lambda v, mode=mode: norms.enter(mode, v, 1.5)[0], (v,))
        found[f"direct {mode}"] = (partial(norms.direct, mode), (g, v))
        found[f"constrain {mode}"] = (
            lambda v, n, mode=mode: norms.constrain(mode, v, n, step=150)[0],
            (v, norms.row_norms(g)),
        )
    return found


CASES = list(cases(0))
NOT_EQUATIONS_OF_ARRAYS = {
    "scaled_linear_betas",  # it makes an array from numbers
    "context_positions",  # these are about positions and steps
    "paired_context_positions",
    "rescale_window",
    "in_window",
}


def test_no_equation_is_left_out():
    public = {
        name
        for module in (schedule, core, norms, objective, similarity)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert {name.split()[0] for name in CASES} == public - NOT_EQUATIONS_OF_ARRAYS


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_numpy_float64(backend, name):
    function, arguments = cases(1)[name]
    expected = function(*arguments)
    result = backend.call(function, *backend.tree(list(arguments)))
    assert type(result) is type(backend.array(np.zeros(1))) or backend.name == "numpy"
    np.testing.assert_allclose(backend.numpy(result), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32_and_near(backend, name):
    function, arguments = cases(2)[name]
    result = backend.call(function, *backend.tree(list(arguments), "float32"))
    if "indices" not in name:
        assert str(result.dtype).endswith("float32")
    np.testing.assert_allclose(backend.numpy(result), function(*arguments), rtol=1e-4, atol=1e-6)


DIFFERENTIABLE = [name for name in CASES if name not in ("at_timesteps", "nearest_rows indices")]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_central_differences(backends, name):
    autograd = backends["torch"]
    function, arguments = cases(3)[name]
    weights = np.random.default_rng(4).normal(size=np.shape(function(*arguments)))  # makes a scalar of any result
    gradients = autograd.gradient(lambda *xs: (function(*xs) * autograd.array(weights)).sum(), *arguments)

    for i, argument in enumerate(arguments):
        direction = np.random.default_rng(5 + i).normal(size=argument.shape)
        h = 1e-6

        def along(s, i=i, direction=direction):
            moved = [a + s * direction if j == i else a for j, a in enumerate(arguments)]
            return float((np.asarray(function(*moved)) * weights).sum())

        expected = (along(h) - along(-h)) / (2 * h)
        scale = float((np.abs(gradients[i]) * np.abs(direction)).sum())
        assert abs(float((gradients[i] * direction).sum()) - expected) <= 1e-5 * scale + 1e-7


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_torch_and_jax_agree_on_gradients(backends, name):
    function, arguments = cases(6)[name]
    weights = np.random.default_rng(7).normal(size=np.shape(function(*arguments)))
    ours, theirs = (
        b.gradient(lambda *xs, b=b: (function(*xs) * b.array(weights)).sum(), *arguments)
        for b in (backends["torch"], backends["jax"])
    )
    for g, h in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(g, h, rtol=1e-8, atol=1e-10)


class NoHostSync(TorchDispatchMode):
    """Refuses what makes the host wait for the device: `.item()`, `bool(tensor)`, `float(tensor)`, masks as indices."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"), name
        return op(*args, **(kwargs or {}))


def test_the_guard_sees_a_sync():
    with NoHostSync(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        bool(torch.ones(()) > 0)


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_device(backends, name):
    # JAX has its own guard: what is compiled above and below could not ask for a value
    function, arguments = cases(8)[name]
    arrays = backends["torch"].tree(list(arguments))
    with NoHostSync():
        function(*arrays)


KEEPS_ITS_DTYPE = ("add_noise", "velocity", "prediction_target", "predicted_", "rescale")
KEEPS_ITS_DTYPE += ("tangent", "enter", "direct", "constrain")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(KEEPS_ITS_DTYPE)])
def test_latents_and_rows_keep_a_half_dtype(autograd, name, dtype):
    function, arguments = cases(9)[name]
    first, *rest = arguments
    halves = [autograd.array(x, dtype if x.shape == first.shape else None) for x in (first, *rest)]
    rounded = [autograd.numpy(x).astype(np.float64) for x in halves]
    result = autograd.call(function, *halves)
    assert str(result.dtype).endswith(f".{dtype}" if autograd.name == "torch" else dtype)
    # computed wide: only the inputs and the result are rounded
    half_ulp = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(autograd.numpy(result), function(*rounded), rtol=1.01 * half_ulp, atol=1e-5)


REDUCTIONS = (
    "diffusion_loss",
    "attention_loss",
    "embedding_loss",
    "cosine",
    "sim",
    "row_norms",
    "attention_token_means",
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(REDUCTIONS)])
def test_sums_over_half_precision_are_made_in_float32(autograd, name, dtype):
    function, arguments = cases(10)[name]
    halves = autograd.tree(list(arguments), dtype)
    rounded = [autograd.numpy(x).astype(np.float64) for x in halves]
    result = autograd.call(function, *halves)
    assert str(result.dtype).endswith("float32")
    np.testing.assert_allclose(autograd.numpy(result), function(*rounded), rtol=1e-4, atol=1e-6)
