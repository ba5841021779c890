"""A variational autoencoder of digits: python examples/vae.py

The encoder maps an image to a normal distribution in a plane, the latent space. The decoder maps a point of the plane
to an image. Training maximizes the evidence lower bound: the log-likelihood of the image under the decoder, minus the
Kullback-Leibler divergence of the distribution from a standard normal one (Kingma & Welling, arXiv:1312.6114, equation
10 and appendix B). If Matplotlib is installed, the script plots to vae.png where the encoder maps each digit, and the
images that the decoder generates from a grid of points.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Module, Tensor, manual_seed, no_grad, randn, set_default_dtype
from russellgrad.data import batches
from russellgrad.layers import Linear, ReLU, Sequential
from russellgrad.loss import binary_cross_entropy_with_logits
from russellgrad.optimizer import AdamOptimizer
from russellgrad.schedules import cosine
from train.progress import echo  # like print; a closed pipe or a full disk is no error

parser = argparse.ArgumentParser(description="A variational autoencoder of digits.")
parser.add_argument("--epochs", type=int, default=100, help="passes over the images (default: 100)")
parser.add_argument("--plot", default="vae.png", help="file of the plot (default: vae.png)")
args = parser.parse_args()
if args.epochs < 1:
    parser.error(f"--epochs must be positive, got {args.epochs}")
try:
    from sklearn.datasets import load_digits
except ImportError:
    parser.error('needs scikit-learn; pip install -e ".[examples]"')

set_default_dtype("float32")
manual_seed(0)  # of the initial weights and the noise
images, labels = load_digits(return_X_y=True)
images = images.astype("float32") / 16  # (1797, 64), in [0, 1]


class VAE(Module):
    """Images (N, 64) -> logits of the reconstructions (N, 64), and mean and log variance of the codes (N, 2)."""

    def __init__(self) -> None:
        self.encoder = Sequential(Linear(64, 256), ReLU(), Linear(256, 4))
        self.decoder = Sequential(Linear(2, 256), ReLU(), Linear(256, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).split(2, axis=1)
        noise = randn(*mean.shape, requires_grad=False)
        code = mean + noise * (log_variance / 2).exp()  # reparameterized: differentiable in mean and log_variance
        return self.decoder(code), mean, log_variance


def negative_bound(x: Tensor) -> Tensor:
    """The negative evidence lower bound, in nats per image."""
    logits, mean, log_variance = model(x)
    reconstruction = binary_cross_entropy_with_logits(logits, x, reduction="sum")
    divergence = (mean**2 + log_variance.exp() - log_variance - 1).sum() / 2
    loss: Tensor = (reconstruction + divergence) / x.shape[0]
    return loss


model = VAE()
loader = batches(images, batch_size=100, seed=0)
optimizer = AdamOptimizer(model.parameters(), cosine(3e-3, args.epochs * len(loader)))
start = time.perf_counter()
for epoch in range(args.epochs):
    for x in loader:
        loss = negative_bound(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch % 20 == 19 or epoch == args.epochs - 1:
        with no_grad():
            bound = -negative_bound(Tensor(images))
        echo(f"epoch {epoch + 1:3}: evidence lower bound {bound:.2f} nats per image")
echo(f"seed 0, {time.perf_counter() - start:.1f} s")


def draw(file: str) -> None:
    """Plot the means of all images, and the decoder's images for a grid of points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    n, side = 14, np.linspace(-2.5, 2.5, 14)
    grid = np.stack(np.meshgrid(side, side[::-1]), axis=-1).reshape(-1, 2)  # row by row, from the top
    with no_grad():
        means = model.encoder(Tensor(images)).numpy()[:, :2]
        decoded = model.decoder(Tensor(grid)).sigmoid().numpy().reshape(n, n, 8, 8)
    decoded = np.pad(decoded, ((0, 0), (0, 0), (1, 1), (1, 1)))  # a margin around each image
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 5), layout="constrained")
    for digit in range(10):
        left.scatter(*means[labels == digit].T, s=6, color=f"C{digit}", label=str(digit))
    left.set(aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), title="encoder: means of the images")
    left.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=3)
    right.imshow(decoded.transpose(0, 2, 1, 3).reshape(10 * n, 10 * n), cmap="gray_r", extent=(-2.5, 2.5, -2.5, 2.5))
    right.set(title="decoder: images of a grid of points")
    figure.savefig(file, dpi=110, bbox_inches="tight")


try:
    draw(args.plot)
except ImportError:
    echo('no plot: Matplotlib is not installed; pip install -e ".[examples]"')
except (OSError, ValueError) as error:  # such as a missing folder, or an unknown format
    sys.exit(f"no plot: {error}")
else:
    echo(f"the plane is in {args.plot}")
