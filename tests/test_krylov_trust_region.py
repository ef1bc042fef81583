"""Arnoldi.trust_region: against a dense solver that we did not write, and by the conditions that define a maximum."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soae_ext._krylov.projected import _boundary
from soae_ext.krylov import Arnoldi, arnoldi
from tests.krylov_problems import dense_trust_region, model_value, numpy64, symmetric, with_spectrum
from tests.problems import times, vectors


def check_maximum(a: np.ndarray, v: np.ndarray, radius: float, delta: np.ndarray, tolerance: float) -> float:
    """(λI − A)δ = v, λ ≥ max(λ_max, 0), λ (radius − ‖δ‖) = 0, each relative to its terms: necessary and sufficient for
    a global maximum (Moré & Sorensen 1983). Returns λ."""
    size = np.linalg.norm(a, 2)
    length = np.linalg.norm(delta)
    assert length <= radius * (1 + tolerance)
    gradient = v + a @ delta
    lam = float(gradient @ delta / max(length, 1e-300) ** 2)
    terms = np.linalg.norm(v) + size * length
    assert np.linalg.norm(gradient - lam * delta) <= tolerance * terms
    slack = tolerance * terms / max(length, 1e-300)
    assert lam >= max(np.linalg.eigvalsh(a)[-1], 0.0) - slack
    assert lam <= slack or length >= radius * (1 - tolerance)
    return lam


def whole(A: torch.Tensor, v: torch.Tensor, backend: str) -> Arnoldi:
    return arnoldi(A, v, steps=v.shape[1], backend=backend)


SPECTRA = {
    "indefinite": np.linspace(-3.0, 2.0, 12),
    "positive definite": np.linspace(0.5, 2.0, 12),
    "negative definite": np.linspace(-2.0, -0.5, 12),
    "positive semi-definite": np.r_[np.zeros(8), 1.0, 1.5, 2.0, 4.0],
    "negative semi-definite": np.r_[np.zeros(8), -1.0, -1.5, -2.0, -4.0],
    "graded": -np.logspace(-6, 1, 12),
    "zero": np.zeros(12),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("radius", [1e-6, 0.3, 1.0, 40.0, 1e7])
def test_against_a_dense_solver_on_the_whole_space(backend, device, dtype, name, radius):
    eps = torch.finfo(dtype).eps
    A = torch.stack([with_spectrum(torch.from_numpy(SPECTRA[name]), s, dtype) for s in (1, 2)])
    v = vectors(2, 12, seed=3, dtype=dtype)
    delta = whole(A.to(device), v.to(device), backend).trust_region(radius)
    assert delta.shape == v.shape
    assert delta.dtype == dtype
    for i in range(2):
        a, start, got = numpy64(A[i]), numpy64(v[i]), numpy64(delta[i])
        expected = dense_trust_region(a, start, radius)
        best = model_value(a, start, expected)
        terms = np.linalg.norm(start) * np.linalg.norm(got) + np.linalg.norm(a, 2) * np.linalg.norm(got) ** 2
        assert abs(model_value(a, start, got) - best) <= 100 * eps * terms
        assert np.linalg.norm(got) <= radius * (1 + 4 * eps)
        if dtype == torch.float64:
            check_maximum(a, start, radius, got, 1e-12)


def test_against_scipy_minimize_in_a_small_space(backend, device):
    """steps < n: the same problem on V by trust-constr, which knows nothing of eigenvalues."""
    A, v = symmetric(1, 20, 4), vectors(1, 20, seed=5)
    a = arnoldi(A.to(device), v.to(device), steps=4, backend=backend)
    V = numpy64(a.basis[0, :4])
    matrix, start = numpy64(A[0]), numpy64(v[0])
    t, c = V @ matrix @ V.T, V @ start
    for radius in (0.2, 5.0):
        best = min(
            scipy.optimize.minimize(
                lambda y: -model_value(t, c, y),
                radius * guess / np.linalg.norm(guess) / 2,
                jac=lambda y: -(c + t @ y),
                constraints={
                    "type": "ineq",
                    "fun": lambda y, r=radius: r * r - y @ y,
                    "jac": lambda y: -2 * y,
                },
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 500},
            ).fun
            for guess in (c, -c, np.array([1.0, 1.0, 1.0, 1.0]), np.array([1.0, -1.0, 1.0, -1.0]))
        )
        delta = numpy64(a.trust_region(radius)[0])
        assert np.linalg.norm(delta - V.T @ (V @ delta)) <= 1e-13 * radius
        assert model_value(matrix, start, delta) == pytest.approx(-best, rel=1e-8)


@settings(max_examples=120, deadline=None)
@given(
    values=st.lists(st.floats(-2, 2), min_size=1, max_size=9),
    log_first=st.lists(st.floats(-14, 0), min_size=9, max_size=9),
    log_radius=st.floats(-8, 8),
    log_scale=st.floats(-6, 6),
    seed=st.integers(0, 1000),
)
@example(values=[1.0, 1.0], log_first=[0.0] * 9, log_radius=0.0, log_scale=0.0, seed=0)
@example(values=[-1.0, 2.0], log_first=[0.0, -14.0] + [0.0] * 7, log_radius=2.0, log_scale=0.0, seed=0)
@example(values=[-2.0, -1e-9], log_first=[0.0, -9.0] + [0.0] * 7, log_radius=0.0, log_scale=0.0, seed=0)
@example(values=[0.0], log_first=[0.0] * 9, log_radius=3.0, log_scale=5.0, seed=1)
def test_the_conditions_of_a_maximum(values, log_first, log_radius, log_scale, seed):
    """Any symmetric A, with v hidden from its eigenvectors by up to 14 digits. The conditions are those on the space:
    the Krylov space ends by breakdown where v is hidden entirely."""
    A = with_spectrum(torch.tensor(values, dtype=torch.float64), seed)
    q = torch.linalg.eigh(with_spectrum(torch.tensor(values, dtype=torch.float64), seed)).eigenvectors
    v = q @ (10.0 ** torch.tensor(log_first[: len(values)], dtype=torch.float64)) * 10.0**log_scale
    radius = 10.0**log_radius
    a = whole(A[None], v[None], "reference")
    d = int(a.dims[0])
    V = numpy64(a.basis[0, :d])
    delta = numpy64(a.trust_region(radius)[0])
    assert np.linalg.norm(delta - V.T @ (V @ delta)) <= 1e-14 * radius
    t, c = V @ numpy64(A) @ V.T, V @ numpy64(v)
    check_maximum((t + t.T) / 2, c, radius, V @ delta, 1e-12)


@pytest.mark.parametrize("hidden", [1e-2, 1e-5, 1e-8, 1e-11, 1e-14])
@pytest.mark.parametrize("radius", [0.5, 1.0, 30.0])
def test_near_the_hard_case(backend, device, dtype, hidden, radius):
    """v sees the top eigenvector by `hidden` only. In float32 that is rounding noise from 1e-8 on."""
    eps = torch.finfo(dtype).eps
    d = torch.tensor([2.0, 1.0, 0.5, -1.0, -2.0], dtype=dtype)
    v = torch.tensor([[hidden, 1.0, 0.7, -0.6, 0.3]], dtype=dtype)
    a = whole(torch.diag(d).to(device), v.to(device), backend)
    delta = numpy64(a.trust_region(radius)[0])
    matrix, start = numpy64(torch.diag(d)), numpy64(v[0])
    best = model_value(matrix, start, dense_trust_region(matrix, start, radius))
    got = model_value(matrix, start, delta)
    if int(a.dims[0]) == 5:
        assert best - got <= 100 * eps * (2 * radius**2 + 2 * radius)
    else:  # hidden beyond what the arithmetic sees: the best without that direction
        assert hidden < 100 * eps
        rest = model_value(matrix[1:, 1:], start[1:], dense_trust_region(matrix[1:, 1:], start[1:], radius))
        assert got >= rest - 100 * eps * (2 * radius**2 + 2 * radius)
    assert np.linalg.norm(delta) <= radius * (1 + 4 * eps)


def decomposition_of(H: torch.Tensor, norm: float) -> Arnoldi:
    """As if the basis were the unit vectors; H: (m, m) symmetric, unreduced or not."""
    m = H.shape[0]
    hessenberg = torch.zeros(1, m + 1, m, dtype=torch.float64)
    hessenberg[0, :m] = H
    return Arnoldi(
        basis=torch.eye(m + 1, m, dtype=torch.float64)[None],
        hessenberg=hessenberg,
        dims=torch.tensor([m]),
        norm=torch.tensor([norm], dtype=torch.float64),
        norm_exponent=torch.tensor([0]),
        operator_calls=m,
        shape=torch.Size([1, m]),
    )


@pytest.mark.parametrize("top", [3.0, 0.5, 1.0 + 1e-13])
def test_the_hard_case_reaches_the_boundary(top):
    """T with a top eigenvector that e_1 is exactly orthogonal to, as a process without rounding would not produce it:
    λ = λ_max, and the eigenvector fills up what is missing."""
    H = torch.diag(torch.tensor([0.25, top, -1.0], dtype=torch.float64))
    radius = 10.0
    delta = decomposition_of(H, 1.0).trust_region(radius)[0]
    inner = 1.0 / (top - 0.25)
    assert delta[0] == pytest.approx(inner, rel=1e-12)
    assert abs(float(delta[1])) == pytest.approx((radius**2 - inner**2) ** 0.5, rel=1e-12)
    assert delta[2] == 0
    check_maximum(numpy64(H), np.array([1.0, 0.0, 0.0]), radius, numpy64(delta), 1e-13)
    short = decomposition_of(H, 1.0).trust_region(0.5 * inner)[0]  # not hard: the radius ends before
    torch.testing.assert_close(short, torch.tensor([0.5 * inner, 0, 0], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("c_top", [1e-280, -1e-300, 5e-324])
def test_a_component_with_few_digits_is_the_hard_case(c_top):
    """Some eigensolvers return such first components. Dividing by a t of that size would leave the others wrong."""
    c = torch.tensor([[0.25, c_top]], dtype=torch.float64)
    z = _boundary(c, torch.tensor([[1.0, 0.0]], dtype=torch.float64))[0]
    assert float(z[0]) == pytest.approx(0.25, rel=1e-14)
    assert abs(float(z[1])) == pytest.approx(15**0.5 / 4, rel=1e-14)


def test_the_hard_case_of_a_negative_semidefinite_one_stays_inside():
    H = torch.diag(torch.tensor([-2.0, 0.0, -1.0], dtype=torch.float64))
    delta = decomposition_of(H, 1.0).trust_region(10.0)[0]
    torch.testing.assert_close(delta, torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 1e-12])
def test_a_tiny_component_beside_a_nearly_full_radius(distance):
    """At λ_max, ‖y‖ without the top component is radius·(1 − distance): Newton's method alone would creep."""
    c = np.array([1.0, 1e-12])
    values = np.array([-1.0, 1.0])
    q = np.array([[c[0], -c[1]], [c[1], c[0]]]) / np.linalg.norm(c)
    H = q @ np.diag(values) @ q.T
    radius = c[0] / 2 / (1 - distance)
    delta = numpy64(decomposition_of(torch.from_numpy(H), float(np.linalg.norm(c))).trust_region(radius)[0])
    check_maximum((H + H.T) / 2, np.array([np.linalg.norm(c), 0.0]), radius, delta, 1e-13)
    expected = dense_trust_region(np.diag(values), np.array([c[0], -c[1]]), radius)  # qᵀ e_1 ‖c‖
    np.testing.assert_allclose(delta @ q, expected, rtol=1e-3)


def test_zero_start_and_zero_radius(backend, device, dtype):
    A, v = symmetric(3, 8, 6, dtype).to(device), vectors(3, 8, seed=7, dtype=dtype).to(device)
    v[1] = 0.0
    a = arnoldi(A, v, steps=5, backend=backend)
    delta = a.trust_region(torch.tensor([0.0, 2.0, 2.0]))
    assert bool((delta[:2] == 0).all())
    assert float(delta[2].norm()) == pytest.approx(2.0, rel=1e-6)


def test_a_zero_operator_gives_the_gradient_step(backend, device, dtype):
    v = vectors(2, 9, seed=8, dtype=dtype).to(device)
    delta = arnoldi(torch.zeros_like, v, steps=4, backend=backend).trust_region(torch.tensor([0.5, 3.0]))
    expected = v * (torch.tensor([0.5, 3.0], dtype=dtype, device=device) / v.norm(dim=1))[:, None]
    torch.testing.assert_close(delta, expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_mixed_batch(backend, device, dtype):
    """Indefinite, short interior, rank one, zero v and huge: padding must not act as an eigenvalue of zero."""
    eps = torch.finfo(dtype).eps
    A = torch.zeros(5, 10, 10, dtype=dtype)
    A[0] = with_spectrum(torch.linspace(-1.0, 1.0, 10), 9, dtype)
    A[1, range(2), range(2)] = torch.tensor([-2.0, -4.0], dtype=dtype)
    A[2, 0, 0] = 3.0
    A[3] = A[0]
    A[4] = -torch.eye(10) * 2.0**40
    v = torch.zeros(5, 10, dtype=dtype)
    v[0] = vectors(1, 10, seed=10, dtype=dtype)[0]
    v[1, :2] = torch.tensor([1.0, 2.0])
    v[2, 0] = -1.0
    v[4] = v[0]
    radius = torch.tensor([0.7, 5.0, 2.0, 1.0, 1e3], dtype=torch.float64)
    a = arnoldi(times(A.to(device)), v.to(device), steps=8, backend=backend)
    assert a.dims.tolist() == [8, 2, 1, 0, 1]
    delta = a.trust_region(radius).double().cpu()
    torch.testing.assert_close(delta[1, :2], torch.tensor([0.5, 0.5]).double(), rtol=20 * eps, atol=0)
    torch.testing.assert_close(delta[2, 0], torch.tensor(-2.0).double(), rtol=20 * eps, atol=0)
    assert bool((delta[3] == 0).all())
    torch.testing.assert_close(delta[4], v[4].double() / 2.0**40, rtol=20 * eps, atol=0)
    assert float(delta[0].norm()) == pytest.approx(0.7, rel=10 * eps)


def test_no_step_is_longer_than_the_radius(backend, device):
    """Up to the rounding of the result: the basis alone is orthonormal to a few times that."""
    A, v = symmetric(64, 100, 11, torch.float32), vectors(64, 100, seed=12, dtype=torch.float32)
    radius = torch.linspace(0.5, 2.0, 64, dtype=torch.float64)
    delta = arnoldi(A.to(device), v.to(device), steps=20, backend=backend).trust_region(radius)
    excess = delta.double().norm(dim=1).cpu() / radius - 1
    assert float(excess.max()) <= 0.25 * torch.finfo(torch.float32).eps


RATIOS = [(-150, 150, 0), (150, -150, 0), (0, -150, 150), (0, 150, -150), (-300, 300, 0), (300, -300, 0)]


@pytest.mark.parametrize(("log_a", "log_v", "log_radius"), RATIOS)
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_ratios(log_a, log_v, log_radius, sign):
    """Where one term is nothing beside the other the answer is that of the larger term, and nothing overflows; the
    second system has one dimension and two of padding."""
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64) * sign
    A = torch.diag(values) * 10.0**log_a
    v = torch.tensor([[1.0, 1.0, 1.0], [0.0, -1.0, 0.0]], dtype=torch.float64) * 10.0**log_v
    a = whole(A.expand(2, 3, 3), v, "reference")
    assert a.dims.tolist() == [3, 1]
    delta = a.trust_region(10.0**log_radius)
    dominated = log_a + log_radius > log_v
    if sign < 0 and dominated:  # the maximum of the whole space, far inside
        expected = -v / 10.0 ** (log_a / 2) / values / 10.0 ** (log_a / 2)
        torch.testing.assert_close(delta, expected, rtol=1e-13, atol=0)
        return
    delta = delta / 10.0**log_radius
    torch.testing.assert_close(delta[1], torch.tensor([0.0, -1.0, 0.0]).double(), rtol=1e-13, atol=0)
    if dominated:
        torch.testing.assert_close(delta[0].abs(), torch.tensor([0, 0, 1.0]).double(), rtol=1e-13, atol=1e-13)
    else:
        torch.testing.assert_close(delta[0], torch.full((3,), 3**-0.5, dtype=torch.float64), rtol=1e-13, atol=0)
