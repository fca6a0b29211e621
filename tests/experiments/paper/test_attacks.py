"""Attacks on a linear network, whose answers can be worked out by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage

from experiments.paper import attacks

SHAPE = (6, 6, 1)
BOUNDS = (-2.0, 2.0)


class Linear(nnx.Module):
    """Logits ``x . w`` of three classes."""

    def __init__(self, weights):
        self.weights = nnx.Param(jnp.asarray(weights, jnp.float32))

    def __call__(self, x):
        return x.reshape(len(x), -1) @ self.weights[...]


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(0).normal(size=(36, 3))


@pytest.fixture(scope="module")
def network(weights):
    return attacks.Network(Linear(weights), BOUNDS)


@pytest.fixture(scope="module")
def task(weights):
    """Images, and as their labels what the network answers."""
    images = np.random.default_rng(1).uniform(-1, 1, (20, *SHAPE)).astype(np.float32)
    return images, (images.reshape(20, -1) @ weights).argmax(-1)


def named(name):
    (found,) = (attack for attack in attacks.ATTACKS if attack.name == name)
    return found


def right(weights, images, labels):
    return (images.reshape(len(images), -1) @ weights).argmax(-1) == labels


def test_gradient_sign_is_one_step_by_the_sign(network, weights, task):
    images, labels = task
    found = attacks.withstood(
        named("gradient sign"), network, images, labels, [0.01, 0.2], seed=0, batch=8
    )
    logits = images.reshape(20, -1).astype(np.float64) @ weights
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    gradient = (share - np.eye(3)[labels]) @ weights.T  # of the cross-entropy
    for epsilon, row in zip((0.01, 0.2), found, strict=True):
        moved = images.reshape(20, -1) + epsilon * np.sign(gradient)
        np.testing.assert_array_equal(row, right(weights, moved.clip(*BOUNDS), labels))
    assert found[0].sum() > found[1].sum()


@pytest.mark.full
def test_many_steps_find_at_least_as_much_as_one(network, task):
    images, labels = task
    one, many = (
        attacks.withstood(named(name), network, images, labels, [0.1], seed=0, batch=20)
        for name in ("gradient sign", "PGD")
    )
    assert many.sum() <= one.sum() < 20


@pytest.mark.full
def test_nothing_is_changed_at_strength_zero_and_all_networks_meet_the_same_noise(network, task):
    images, labels = task
    noise = named("uniform noise")
    found = attacks.withstood(noise, network, images, labels, [0.0, 1.5], seed=3, batch=7)
    assert found[0].all()
    assert not found[1].all()
    again = attacks.withstood(noise, network, images, labels, [0.0, 1.5], seed=3, batch=7)
    np.testing.assert_array_equal(found, again)


@pytest.mark.full
def test_blur_and_rotation_are_scipys(network, weights, task):
    images, labels = task
    (blurred,) = attacks.withstood(named("blur"), network, images, labels, [2.0], seed=0, batch=20)
    smooth = ndimage.gaussian_filter(images, (0, 2, 2, 0))
    np.testing.assert_array_equal(blurred, right(weights, smooth, labels))
    (turned,) = attacks.withstood(
        named("rotation"), network, images, labels, [90], seed=0, batch=20
    )
    np.testing.assert_array_equal(turned, right(weights, np.rot90(images, 1, (1, 2)), labels))


@pytest.mark.full
def test_local_search_changes_few_pixels(network, weights, task):
    images, labels = task
    search = attacks.LocalSearch(rounds=3, each=2, tried=36)
    _, (few, all_), broken = search(
        network, jnp.asarray(images), jnp.asarray(labels), epsilons=[2, 6]
    )
    changed = [(np.asarray(x) != images).any(-1).sum((1, 2)) for x in (few, all_)]
    assert changed[0].max() <= 2
    assert changed[1].max() <= 6
    broken = np.asarray(broken)
    assert broken[0].sum() < broken[1].sum()
    np.testing.assert_array_equal(broken[1], ~right(weights, np.asarray(all_), labels))
    np.testing.assert_array_equal(broken[0], ~right(weights, np.asarray(few), labels))
    assert np.abs(np.asarray(all_)).max() <= BOUNDS[1]
