"""A small diffusion-style denoiser of handwritten digits: `module:analysis.examples.digit_denoiser.feed`.

Data: scikit-learn's 1,797 digits of 8 × 8 pixels, scaled to −1 … 1, plus normal noise with a standard deviation drawn
uniformly from `NOISE`. A convolutional network with one level of halved resolution predicts the clean digit (as in Ho et
al. 2006.11239, but without conditioning on the noise level, which can be inferred from the input). Its blocks are
residual, so a block's update is its output minus its input, as in the blocks of Stable Diffusion (2410.22366):

    head  8 × 8, 32 channels     down  8 × 8     mid  4 × 4, 64 channels     up  8 × 8     tail  8 × 8, 1 channel

The network is trained once, in two minutes on one core, and its weights are cached in the user's cache folder.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss

from sae.io.files import read_tensors, write_tensors
from sae.io.locks import locked
from training.model.feed import Feed
from training.model.packaged import cache_home

SIDE = 8
NOISE = (0.2, 1.2)
N_STEPS, BATCH, RATE = 1500, 128, 2e-3
COPIES = 4
"""Noisy versions of each digit."""


class Block(nn.Module):
    """Residual block: x + f(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "n channels high wide"]) -> Float[Tensor, "n channels high wide"]:
        """Return x plus the block's update."""
        return x + self.inside(x)


class Denoiser(nn.Module):
    """Predicts the clean digit from a noisy one; clean pixels are in [−1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 32, 3, padding=1)
        self.down = Block(32)
        self.narrow = nn.Conv2d(32, 64, 2, stride=2)
        self.mid = Block(64)
        self.widen = nn.Conv2d(64, 32, 1)
        self.up = Block(32)
        self.tail = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, x: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n 1 8 8"]:
        """Return the predicted clean digit."""
        fine = self.down(self.head(x))
        coarse = self.widen(self.mid(self.narrow(fine)))
        return self.tail(self.up(fine + interpolate(coarse, scale_factor=2.0)))


def digits() -> tuple[Float[Tensor, "n 1 8 8"], list[int]]:
    """All digits, scaled to [−1, 1], and their classes."""
    found = load_digits()
    images = torch.from_numpy(np.asarray(found.images, np.float32)) / 8 - 1
    return images[:, None], [int(one) for one in found.target]


def noisy(images: Float[Tensor, "n 1 8 8"], generator: torch.Generator) -> Float[Tensor, "n 1 8 8"]:
    """Add noise with a random standard deviation to each image."""
    sigma = NOISE[0] + (NOISE[1] - NOISE[0]) * torch.rand(len(images), 1, 1, 1, generator=generator)
    return images + sigma * torch.randn(images.shape, generator=generator)


def _batches(images: Float[Tensor, "n 1 8 8"], generator: torch.Generator) -> Iterator[Tensor]:
    for _ in itertools.count():
        for part in torch.randperm(len(images), generator=generator).split(BATCH):
            yield images[part]


def trained(n_steps: int = N_STEPS, seed: int = 0) -> Denoiser:
    """A denoiser trained for `n_steps` steps of Adam; weights depend only on the arguments and are cached on disk."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Denoiser()
    path = cache_home() / "examples" / f"digit-denoiser-{n_steps}-{seed}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, wait=True):
        if path.exists():
            network.load_state_dict(read_tensors(path))
            return network
        _fit(network, n_steps, torch.Generator().manual_seed(seed))
        write_tensors(path, dict(network.state_dict()))
    return network


def _fit(network: Denoiser, n_steps: int, generator: torch.Generator) -> None:
    images, _ = digits()
    optimiser = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=n_steps)
    for clean in itertools.islice(_batches(images, generator), n_steps):
        loss = mse_loss(network(noisy(clean, generator)), clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def drawn(image: Float[Tensor, "1 8 8"]) -> Float[Tensor, "8 8"]:
    """Rescale from [−1, 1] to [0, 1]."""
    return (image[0] + 1) / 2


def feed(n_steps: int = N_STEPS) -> Feed:
    """The denoiser and `COPIES` noisy versions of each digit; versions of a digit are held out together."""
    images, labels = digits()
    many = images.repeat_interleave(COPIES, dim=0)
    inputs = noisy(many, torch.Generator().manual_seed(1))
    numbers = [i // COPIES for i in range(len(inputs))]
    return Feed(
        trained(n_steps), inputs, documents=numbers, names=[f"digit {labels[number]}" for number in numbers], image=drawn,
        output=drawn, batch=256,
    )
