"""Attacks on trained networks, through foolbox's JAX interface."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy import ndimage

from experiments.settings.errors import UserError

try:
    with warnings.catch_warnings():  # It imports SciPy's filters by their old name.
        warnings.simplefilter("ignore", DeprecationWarning)
        import eagerpy as ep
        import foolbox
        from foolbox.attacks.base import FixedEpsilonAttack, MinimizationAttack
        from foolbox.distances import Distance, l2
except ImportError as error:
    raise UserError("attacks on networks need foolbox: pip install 'bandjax[paper]'") from error


class Network(foolbox.JAXModel):  # type: ignore[misc]
    """A network as foolbox takes it, compiled.

    Args:
        model: in inference mode; takes ``(batch, height, width, channels)``.
        bounds: the least and the largest value of an input.
    """

    def __init__(self, model: nnx.Module, bounds: tuple[float, float]) -> None:
        graph, state = nnx.split(model)
        state = jax.device_put(state)

        def logits(x: jax.Array) -> jax.Array:
            return nnx.merge(graph, state)(x).astype(jnp.float32)

        def loss(x: jax.Array, labels: jax.Array) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(logits(x), labels).sum()

        self.logits = jax.jit(logits)
        self.loss_and_gradient = jax.jit(jax.value_and_grad(loss))
        super().__init__(self.logits, bounds)


class _Compiled:
    """A gradient attack whose gradients are one compiled program, not traced at every step."""

    def get_loss_fn(self, model: Network, labels: Any) -> Any:
        return model, labels

    def value_and_grad(self, loss_fn: Any, x: Any) -> tuple[Any, Any]:
        model, labels = loss_fn
        loss, gradient = model.loss_and_gradient(x.raw, labels.raw)
        return ep.astensor(loss), ep.astensor(gradient)


class FastGradientSign(_Compiled, foolbox.attacks.LinfFastGradientAttack):  # type: ignore[misc]
    """One step by the sign of the gradient."""


class ProjectedGradient(_Compiled, foolbox.attacks.LinfPGD):  # type: ignore[misc]
    """Many small steps from a random start."""


class _Unclipped(Distance):  # type: ignore[misc]
    """The size of an attack that is a parameter of its own, not a distance."""

    def __call__(self, reference: Any, perturbed: Any) -> Any:
        raise NotImplementedError

    def clip_perturbation(self, references: Any, perturbed: Any, epsilon: float) -> Any:
        return perturbed


class _Pixels(Distance):  # type: ignore[misc]
    """How many pixels differ; what needs more of them is given up."""

    def __call__(self, reference: Any, perturbed: Any) -> Any:
        changed = np.asarray(reference.raw != perturbed.raw).any(-1)
        return ep.astensor(jnp.asarray(changed.sum((1, 2))))

    def clip_perturbation(self, references: Any, perturbed: Any, epsilon: float) -> Any:
        within = self(references, perturbed).raw <= epsilon
        return ep.astensor(jnp.where(within[:, None, None, None], perturbed.raw, references.raw))


class Rotation(FixedEpsilonAttack):  # type: ignore[misc]
    """Turns images by so many degrees, linearly interpolated; what moves in repeats the edge."""

    distance = _Unclipped()

    def run(
        self, model: Any, inputs: Any, criterion: Any = None, *, epsilon: float, **_: Any
    ) -> Any:
        x, restore = ep.astensor_(inputs)
        turned = ndimage.rotate(
            np.asarray(x.raw), epsilon, axes=(1, 2), reshape=False, order=1, mode="nearest"
        )
        return restore(ep.astensor(jnp.asarray(turned.clip(*model.bounds))))


class LocalSearch(MinimizationAttack):  # type: ignore[misc]
    """Changes few pixels, found greedily by the network's answers alone.

    In each round some pixels are tried, each driven to a bound by itself; those that lower the
    probability of the right class most are changed for good, and the next round tries pixels
    around them.

    Reference: Narodytska and Kasiviswanathan, "Simple black-box adversarial attacks on deep neural
    networks", CVPR workshops 2017, algorithm 1.

    Args:
        rounds: at most.
        each: pixels changed in a round.
        tried: pixels tried in a round, at most.
        reach: half the side of the square around a changed pixel that is tried next.
        strength: what a pixel is multiplied by when it is changed; beyond a bound it comes in at
            the other.
        seed: of the first pixels.
    """

    distance = _Pixels()

    def __init__(
        self,
        rounds: int,
        each: int = 5,
        tried: int = 64,
        reach: int = 5,
        strength: float = 1.5,
        seed: int = 0,
    ) -> None:
        self.rounds, self.each, self.tried = rounds, each, tried
        self.reach, self.strength, self.seed = reach, strength, seed

    def run(
        self, model: Any, inputs: Any, criterion: Any, *, early_stop: float | None = None, **_: Any
    ) -> Any:
        """The images after the last round; those that the network errs on are left alone."""
        x, restore = ep.astensor_(inputs)
        images = np.array(x.raw)
        labels = np.asarray(foolbox.attacks.base.get_criterion(criterion).labels.raw)
        random = np.random.default_rng(self.seed)
        sides = images.shape[1:3]
        everywhere = np.stack(np.unravel_index(np.arange(np.prod(sides)), sides), -1)
        candidates = {
            n: random.permutation(everywhere)[: self.tried]
            for n in np.flatnonzero(_answers(model, images).argmax(-1) == labels)
        }
        for _round in range(self.rounds):
            if not candidates:
                break
            for n, places in candidates.items():
                chosen = places[self._best(model, images[n], labels[n], places)]
                self._change(model.bounds, images[n], chosen)
                near = np.abs(everywhere[:, None] - chosen[None]).max(-1).min(1) <= self.reach
                candidates[n] = random.permutation(everywhere[near])[: self.tried]
            left = np.array(list(candidates))
            right = _answers(model, images[left]).argmax(-1) == labels[left]
            candidates = {n: candidates[n] for n in left[right]}
        return restore(ep.astensor(jnp.asarray(images)))

    def _best(self, model: Any, image: np.ndarray, label: int, places: np.ndarray) -> np.ndarray:
        """Which of the places lower the probability of the right class most."""
        tried = np.repeat(image[None], len(places), 0)
        rows = np.arange(len(places))
        pixels = tried[rows, places[:, 0], places[:, 1]]
        driven = np.where(pixels < np.mean(model.bounds), *model.bounds)
        tried[rows, places[:, 0], places[:, 1]] = driven
        probability = jax.nn.softmax(_answers(model, tried, self.tried))[:, label]
        return np.argsort(np.asarray(probability), kind="stable")[: self.each]

    def _change(self, bounds: Any, image: np.ndarray, places: np.ndarray) -> None:
        low, high = bounds
        pixels = self.strength * image[places[:, 0], places[:, 1]]
        pixels = np.where(pixels < low, pixels + (high - low), pixels)
        pixels = np.where(pixels > high, pixels - (high - low), pixels)
        image[places[:, 0], places[:, 1]] = pixels.clip(low, high)


def _answers(model: Any, images: np.ndarray, size: int | None = None) -> np.ndarray:
    """The logits of images; by a batch of ``size``, padded, so that one program serves all."""
    count = len(images)
    size = size or -(-count // 32) * 32
    padded = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), np.float32)])
    return np.asarray(model.logits(padded))[:count]


@dataclass(frozen=True)
class Attack:
    """An attack at several strengths.

    Attributes:
        name: for the legend.
        unit: of its strengths.
        epsilons: the strengths; 0 is no attack.
        gradient: whether it uses the network's gradients.
        images: which part of the images it gets; slow attacks get fewer.
        make: foolbox's attack, for one strength where ``each`` is set.
        size: the strength as foolbox takes it, of an image's number of values.
        each: whether foolbox's attack is made anew for each strength, and minimises nothing.
    """

    name: str
    unit: str
    epsilons: tuple[float, ...]
    gradient: bool
    make: Callable[[float], Any]
    images: float = 1.0
    size: Callable[[float, int], float] = lambda epsilon, _: epsilon
    each: bool = False


def _blur(sigma: float) -> Any:
    return foolbox.attacks.GaussianBlurAttack(distance=l2, steps=1, max_sigma=sigma)


ATTACKS = (
    Attack(
        "uniform noise",
        "largest change, standardised pixels",
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0),
        False,
        lambda _: foolbox.attacks.LinfAdditiveUniformNoiseAttack(),
    ),
    Attack(
        "Gaussian noise",
        "standard deviation, standardised pixels",
        (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6),
        False,
        lambda _: foolbox.attacks.L2AdditiveGaussianNoiseAttack(),
        size=lambda epsilon, values: epsilon * values**0.5,
    ),
    Attack(
        "blur",
        "standard deviation, pixels",
        (0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
        False,
        _blur,
        each=True,
    ),
    Attack(
        "contrast",
        "Euclidean distance towards grey",
        (10, 20, 30, 40, 50),
        False,
        lambda _: foolbox.attacks.L2ContrastReductionAttack(),
    ),
    Attack("rotation", "degrees", (5, 10, 15, 20, 30, 45), False, lambda _: Rotation()),
    Attack(
        "gradient sign",
        "largest change, standardised pixels",
        (0.001, 0.005, 0.01, 0.05, 0.1),
        True,
        lambda _: FastGradientSign(),
    ),
    Attack(
        "PGD",
        "largest change, standardised pixels",
        (0.001, 0.005, 0.01, 0.05, 0.1),
        True,
        lambda _: ProjectedGradient(rel_stepsize=0.1, steps=20),
        images=0.5,
    ),
    Attack(
        "local search",
        "pixels changed",
        (5, 10, 20, 30, 50),
        False,
        lambda _: LocalSearch(10),
        images=0.1,
    ),
)


def bounds_of(images: np.ndarray) -> tuple[float, float]:
    """The least and the largest value."""
    return float(images.min()), float(images.max())


def withstood(
    attack: Attack,
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
    epsilons: Sequence[float],
    *,
    seed: int,
    batch: int,
) -> np.ndarray:
    """Which images are still recognised, ``(strengths, images)``.

    Args:
        attack: to be made.
        network: on which.
        images: ``(images, height, width, channels)``.
        labels: the right ones.
        epsilons: strengths, of the attack's own.
        seed: of its random numbers: every network meets the same.
        batch: images at a time.
    """
    ep.tensor.JAXTensor.key = jax.random.PRNGKey(seed)
    values = int(np.prod(images.shape[1:]))
    columns = []
    for start in range(0, len(images), batch):
        x = jnp.asarray(images[start : start + batch])
        y = jnp.asarray(labels[start : start + batch])
        if attack.each:
            broken = [attack.make(e)(network, x, y, epsilons=None)[2] for e in epsilons]
        else:
            sizes = [attack.size(epsilon, values) for epsilon in epsilons]
            broken = attack.make(0)(network, x, y, epsilons=sizes)[2]
        columns.append(~np.asarray(jnp.stack(list(broken))))
    return np.concatenate(columns, axis=1)
