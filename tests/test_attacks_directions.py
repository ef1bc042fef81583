"""The directions of one Krylov basis against dense linear algebra in NumPy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soae_ext.attacks.directions import damped, largest_curvature, maximize_in_ball, maximize_in_box
from soae_ext.krylov import arnoldi
from tests.dense_models import frank_wolfe, model_value, symmetric, vectors


def space_of(h, g, steps):
    matrix = torch.from_numpy(h).to(g.dtype)
    return arnoldi(lambda v: torch.einsum("bij,bj->bi", matrix, v), g, steps=steps)


# --- against dense algebra ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.0, 0.3, 1.0, 20.0])
def test_damped_solves_the_shifted_system(damping):
    h, g = symmetric(5, 7), vectors(5, 7)
    found = damped(space_of(h, g, 7), damping).numpy()
    for i in range(5):
        mu = damping * np.abs(np.linalg.eigvalsh(h[i])).max()
        expected = np.linalg.solve(h[i] + mu * np.eye(7), g[i].numpy())
        np.testing.assert_allclose(found[i], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "dims"),
    [
        (np.linspace(-2, 3, 8), 8),
        (np.linspace(-3, -1, 8), 8),  # negative definite
        ([2.0, 2.0, -1.0, -1.0, -1.0, -5.0, -5.0, -5.0], 3),  # the space ends at 3: zeros beyond
        ([-2.0, -2.0, -1.0, -1.0, -1.0, -5.0, -5.0, -5.0], 3),  # and those zeros are no eigenvalue
        (np.full(8, -4.0), 1),
        (np.zeros(8), 1),
    ],
)
def test_largest_curvature_is_the_leading_eigenvector(values, dims):
    # Diagonal, so that products do not round the space larger.
    h, g = np.broadcast_to(np.diag(values), (4, 8, 8)).copy(), vectors(4, 8)
    space = space_of(h, g, 8)
    assert space.dims.tolist() == [dims] * 4
    found = largest_curvature(space).numpy()
    for i in range(4):
        # Of an eigenspace the Krylov space holds one direction, the projection of g.
        levels, q = np.linalg.eigh(h[i])
        top = q[:, levels > levels.max() - 1e-6]
        expected = top @ (top.T @ g[i].numpy())
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(found[i] * np.sign(found[i] @ expected), expected, rtol=0, atol=1e-6)


def test_an_empty_space_has_no_direction():
    g = vectors(3, 6)
    g[1] = 0
    space = space_of(symmetric(3, 6), g, 4)
    assert space.dims.tolist() == [4, 0, 4]
    one = torch.ones(3, 6, dtype=torch.float64)
    radius = torch.ones(3, dtype=torch.float64)
    found = (
        damped(space, 1.0),
        largest_curvature(space),
        maximize_in_box(space, g, -one, one, 5),
        maximize_in_ball(space, g, radius, 5),
    )
    for d in found:
        assert d.isfinite().all()
        assert (d[1] == 0).all()
        assert (d[[0, 2]] != 0).any(1).all()


def test_products_that_are_not_finite_leave_no_direction():
    g = vectors(2, 5)
    space = arnoldi(lambda v: v * torch.tensor([[torch.nan], [1.0]], dtype=v.dtype), g, steps=3)
    assert space.dims.tolist() == [0, 1]
    found = damped(space, 1.0), largest_curvature(space)
    for d in found:
        assert (d[0] == 0).all()
        torch.testing.assert_close(d[1] / d[1].norm(), g[1] / g[1].norm())


@pytest.mark.parametrize("ball", [False, True])
@pytest.mark.parametrize("iterations", [1, 2, 7, 20])
@pytest.mark.parametrize("values", [np.linspace(0.1, 6, 9), np.linspace(-4, 5, 9), np.linspace(-5, -1, 9)])
def test_frank_wolfe_against_a_dense_transcription(values, iterations, ball):
    h, g = symmetric(6, 9, eigenvalues=values), vectors(6, 9)
    rng = np.random.default_rng(2)
    low, high, radius = -rng.random((6, 9)), rng.random((6, 9)), 0.2 + rng.random(6)
    space = space_of(h, g, 9)
    if ball:
        found = maximize_in_ball(space, g, torch.from_numpy(radius), iterations)
    else:
        found = maximize_in_box(space, g, torch.from_numpy(low), torch.from_numpy(high), iterations)
    for i in range(6):

        def corner(slope, i=i):
            return radius[i] * slope / np.linalg.norm(slope) if ball else np.where(slope > 0, high[i], low[i])

        candidates = frank_wolfe(h[i], g[i].numpy(), corner, iterations)
        value = [model_value(h[i], g[i].numpy(), d) for d in candidates]
        np.testing.assert_allclose(found[i].numpy(), candidates[int(np.argmax(value))], rtol=0, atol=1e-9)
        # No weaker than the corner that the gradient points to.
        assert max(value) >= model_value(h[i], g[i].numpy(), corner(g[i].numpy())) - 1e-9


def test_the_maximum_over_a_box_against_all_corners():
    """A convex model: its maximum is a corner, and what is found is one that no better point is next to."""
    n, batch = 8, 60
    h, g = symmetric(batch, n, eigenvalues=np.r_[0.0, 0.0, np.linspace(0.1, 8, n - 2)]), vectors(batch, n)
    low, high = -torch.rand(batch, n, dtype=torch.float64), torch.rand(batch, n, dtype=torch.float64)
    found = maximize_in_box(space_of(h, g, n), g, low, high, 20)
    stationary, shares = 0, []
    for i in range(batch):
        corners = np.array([np.where(c, high[i], low[i]) for c in itertools.product([False, True], repeat=n)])
        values = corners @ g[i].numpy() + (corners @ h[i] * corners).sum(1) / 2
        d = found[i].numpy()
        here = model_value(h[i], g[i].numpy(), d)
        assert here <= values.max() + 1e-9
        assert here >= values[np.argmax(corners @ g[i].numpy())] - 1e-9
        shares.append(here / values.max())
        stationary += np.allclose(d, np.where(g[i].numpy() + h[i] @ d > 0, high[i], low[i]), rtol=0, atol=1e-9)
    assert stationary >= 0.95 * batch
    assert np.mean(shares) > 0.8


@st.composite
def problems(draw):
    """A Hessian, a gradient, how much of the space is built, and the dtype; degenerate ones among them."""
    n = draw(st.integers(1, 9))
    scale = 10.0 ** draw(st.integers(-6, 6))
    values = draw(st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.0, 0.5, 2.0]), min_size=n, max_size=n))
    h = scale * symmetric(3, n, seed=draw(st.integers(0, 999)), eigenvalues=values)
    g = 10.0 ** draw(st.integers(-6, 6)) * vectors(3, n, seed=draw(st.integers(0, 999)))
    if draw(st.booleans()):
        g[0] = 0
    return h, g.to(draw(st.sampled_from([torch.float32, torch.float64]))), draw(st.integers(1, n + 1))


@given(problems(), st.integers(1, 12), st.integers(0, 999))
@settings(deadline=None, max_examples=120)
def test_maximisers_stay_inside_and_never_fall_below_zero(problem, iterations, seed):
    h, g, steps = problem
    space = space_of(h, g, steps)
    generator = torch.Generator().manual_seed(seed)
    low, high = (torch.rand(g.shape, generator=generator, dtype=g.dtype) for _ in range(2))
    low = -low * (low > 0.2)  # pixels at the border leave no room on one side
    radius = torch.rand(3, generator=generator, dtype=g.dtype)
    in_box = maximize_in_box(space, g, low, high, iterations)
    in_ball = maximize_in_ball(space, g, radius, iterations)
    few = 8 * torch.finfo(g.dtype).eps
    assert (in_box >= low * (1 + few)).all()
    assert (in_box <= high * (1 + few)).all()
    assert (in_ball.norm(dim=1) <= radius * (1 + few)).all()
    basis, t = space.basis[:, :-1].double(), space.hessenberg[:, :-1]
    for d in (in_box, in_ball):
        assert d.isfinite().all()
        inside = torch.einsum("bkn,bn->bk", basis, d.double())
        linear_part, curved = (g.double() * d.double()).sum(1), torch.einsum("bk,bkl,bl->b", inside, t, inside) / 2
        assert (linear_part + curved >= -100 * few * (linear_part.abs() + curved.abs())).all()
        assert (d[(g == 0).all(1)] == 0).all()
