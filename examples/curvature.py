"""Curvature of a transformer's loss: python examples/curvature.py runs/shakespeare

Computes the Hessian eigenvalue of largest absolute value. The Hessian has a row for each parameter, and is never built.
Power iteration needs only its products with vectors, which `hvp` computes. If the eigenvalue is positive, it is the
largest curvature of the loss in any direction. Where the loss is close to its second-order Taylor polynomial, gradient
descent with a learning rate above 2 / eigenvalue then diverges along the eigenvector (Cohen et al., arXiv:2103.00065).
Without a model, the script trains a small one.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to import russellgrad from the checkout
from russellgrad import Tensor, functional_call, hvp, no_grad
from russellgrad.checkpoint import load_model
from russellgrad.loss import cross_entropy_loss
from russellgrad.optimizer import AdamOptimizer
from russellgrad.russelltransformer import Transformer
from russellgrad.tokenizer import Tokenizer
from train.data import batches, split
from train.datasets import load_text
from train.progress import echo, exit_on_error  # echo: like print; a closed pipe is no error

parser = argparse.ArgumentParser(description="The Hessian eigenvalue of largest absolute value, of a model's loss.")
parser.add_argument("model", type=Path, nargs="?", help="a model.safetensors file, or the folder of a run")
parser.add_argument("--dataset", default="shakespeare", help="the model's text, as in training (default: shakespeare)")
args = parser.parse_args()

Parameters = dict[str, Tensor]


def dot(a: Parameters, b: Parameters) -> float:
    """The dot product of two vectors, each a dict of Tensors."""
    return sum(float((a[name] * b[name]).sum()) for name in a)


def power_iteration(f: Callable[[Parameters], Tensor], x: Parameters) -> float:
    """The eigenvalue of largest absolute value of the Hessian H of f at x.

    The product with H stretches the component of v along its eigenvector the most, so v turns to that direction. For a
    unit vector v, an eigenvalue of H is within the residual |H v - eigenvalue v| of the estimate v.H v. The iteration
    stops when the residual is below 0.1 % of the estimate, or after 100 products.
    """
    rng = np.random.default_rng(0)
    v = {name: Tensor(rng.normal(size=p.shape)).astype(p.dtype) for name, p in x.items()}
    for iteration in range(100):
        norm = math.sqrt(dot(v, v))
        v = {name: part / norm for name, part in v.items()}
        product = hvp(f, x, v)
        eigenvalue = dot(v, product)
        residual = math.sqrt(max(dot(product, product) - eigenvalue**2, 0))  # max: rounding may make it negative
        echo(f"iteration {iteration:3}: eigenvalue {eigenvalue:8.4f}, residual {residual:.1e}")
        if residual < 1e-3 * abs(eigenvalue):
            break
        v = product
    return eigenvalue


# --- A model to apply it to


def train_small(text: str) -> Transformer:
    """A transformer of one block, after 100 steps on the text."""
    tokenizer = Tokenizer.from_text(text, max_seq_len=16, embed_dim=16, seed=0)
    model = Transformer(tokenizer, n_layers=1, n_attn_heads=2, activation="gelu", seed=0)
    optimizer = AdamOptimizer(model.parameters(), lr=1e-2)
    data = batches(np.array(tokenizer.encode(text)), 12, tokenizer.max_seq_len, seed=0)
    for _ in range(100):
        inputs, targets = next(data)
        loss = cross_entropy_loss(model(inputs), targets, tokenizer.pad_token_id)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def model_and_text(path: Path | None, dataset: str) -> tuple[Transformer, str]:
    """The model of a run, and the text it was trained on; without a path, a small model, and a short text."""
    if path is None:
        text = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 20
        return train_small(text), text
    text = load_text(dataset)
    return load_model(path / "model.safetensors" if path.is_dir() else path), text  # without dropout


with exit_on_error(ValueError, ImportError, OSError):
    model, text = model_and_text(args.model, args.dataset)
    ids, _ = split(model.tokenizer.encode(text), model.tokenizer.max_seq_len)
inputs, targets = next(batches(ids, 12, model.tokenizer.max_seq_len, seed=1))  # (12, max_seq_len) each


def loss_of(parameters: Parameters) -> Tensor:
    """The loss on the batch, as a function of the model's parameters."""
    return cross_entropy_loss(functional_call(model, parameters, inputs), targets, model.tokenizer.pad_token_id)


with no_grad():  # the products are not differentiated further, which saves time and memory
    eigenvalue = power_iteration(loss_of, dict(model.named_parameters()))
limit = f", 2 / eigenvalue {2 / eigenvalue:.4f}" if eigenvalue > 0 else ""
echo(f"eigenvalue {eigenvalue:.4f}{limit}")
