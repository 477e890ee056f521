"""A small vision network on scikit-learn's digits, with random weights, and the ways in which a feed may be given.

Written as a user would; tests copy it into their folder, and name its functions as `module:toy_vision.…`.
"""

import itertools

import torch
from sklearn.datasets import load_digits
from torch import nn

from training import Feed

N = 60
"""Images that are taken."""


class Net(nn.Module):
    """Convolutions, a flat layer, tokens, and a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.block = nn.Conv2d(6, 6, 3, padding=1)
        self.tokens = nn.Linear(6, 5)
        # a multiple of 16: of narrower products a row's last bit depends on its place in the batch, on some processors
        self.flat = nn.Linear(6, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of ten digits."""
        x = self.act(self.conv(image if shift is None else image + shift))
        x = self.act(x + self.block(x))
        self.tokens(x.flatten(2).transpose(1, 2))
        return self.head(self.flat(x.mean((2, 3))))


def _net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def _digits() -> tuple[torch.Tensor, list[str]]:
    found = load_digits()
    return torch.from_numpy(found.images[:N]).float()[:, None] / 16, [f"digit {one}" for one in found.target[:N]]


def _draw(image: torch.Tensor) -> torch.Tensor:
    return image[0]


def _scores(output: torch.Tensor) -> dict[str, float]:
    return {f"digit {i}": float(p) for i, p in enumerate(output.softmax(0))}


def digits() -> Feed:
    """Everything: images, names, documents of three inputs each, outputs as probabilities."""
    images, names = _digits()
    return Feed(_net(), images, documents=[i // 3 for i in range(N)], names=names, image=_draw, output=_scores, batch=7)


def plain() -> Feed:
    """No more than a module and inputs."""
    return Feed(_net(), _digits()[0])


def endless() -> Feed:
    """Inputs that never end."""
    return Feed(_net(), (image for image in itertools.cycle(_digits()[0])))


def keywords() -> Feed:
    """Inputs with names."""
    return Feed(_net(), [{"image": image, "shift": torch.full((1, 8, 8), i / 100)} for i, image in enumerate(_digits()[0])])


def positional() -> Feed:
    """Inputs of two tensors."""
    return Feed(_net(), [(image, torch.full((1, 8, 8), i / 100)) for i, image in enumerate(_digits()[0])])


# -- what goes wrong ---------------------------------------------------------------------------------------------------

number = 3


def not_a_feed() -> dict:
    """Something else."""
    return {"module": _net()}


def no_module() -> Feed:
    """A function in the module's place."""
    return Feed(_net().forward, _digits()[0])


def no_inputs() -> Feed:
    """Nothing to feed."""
    return Feed(_net(), [])


def few_documents() -> Feed:
    """Not one for each input."""
    return Feed(_net(), _digits()[0], documents=[1, 2])


def wrong_image() -> Feed:
    """Draws no image."""
    return Feed(_net(), _digits()[0], image=lambda image: image.flatten())


def other_shapes() -> Feed:
    """Inputs that make no batch."""
    return Feed(_net(), [torch.zeros(1, 8, 8 + i) for i in range(N)])


def wrong_call() -> Feed:
    """A module that does not take its inputs."""
    return Feed(_net(), torch.zeros(N, 3, 8, 8))


def raises() -> Feed:
    """An error of the user's."""
    raise RuntimeError("no weights here")
