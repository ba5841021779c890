"""Write text with a trained model: `python train/generate.py runs/shakespeare/model.safetensors --prompt "ROMEO:"`.

RG_BACKEND chooses the backend.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where `russellgrad` and `train` are

from russellgrad import get_backend
from russellgrad.checkpoint import load_model
from train.progress import echo, exit_on_error

BETWEEN = "\n" + 15 * "-" + "\n"  # two texts


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write text with a model that train_transformer.py trained.")
    parser.add_argument("model", help="a model.safetensors, or the folder of a run")
    parser.add_argument(
        "--prompt", action="append", help="how the text begins; several times for several texts (default: a new line)"
    )
    parser.add_argument("--num-samples", type=int, default=1, help="texts for each prompt (default: 1)")
    parser.add_argument("--tokens", type=int, default=500, help="characters to add to it, at most (default: 500)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most likely one (default: 0.8)")
    parser.add_argument("--top-k", type=int, help="draw from so many of the most likely ones (default: from all)")
    parser.add_argument(
        "--top-p", type=float, help="draw from the most likely ones that have this probability together"
    )
    parser.add_argument("--stop", help="end a text before this string")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    return parser.parse_args(arguments)


def generate(
    path: str | Path,
    prompts: Sequence[str] | None = None,
    tokens: int = 500,
    *,
    num_samples: int = 1,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """What the model in a file, or in a run's or a checkpoint's folder, writes.

    In pieces: each prompt with what follows, a line between two texts.
    All texts are made at once; the first comes as it is made, the others when all are done.
    Raises as `load_model` and `Transformer.stream` do, and ValueError for num_samples < 1.
    """
    if num_samples < 1:
        raise ValueError(f"generate: needs num_samples >= 1, got {num_samples}")
    path = Path(path)
    model = load_model(path / "model.safetensors" if path.is_dir() else path)
    vocabulary = model.tokenizer.vocabulary
    default = "\n" if "\n" in vocabulary else vocabulary[0]
    texts = [prompt for prompt in prompts or [default] for _ in range(num_samples)]
    steps = model.stream(texts, tokens, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop, seed=seed)
    first, *others = texts
    yield first
    for piece, *pieces in steps:
        yield piece
        others = [text + more for text, more in zip(others, pieces, strict=True)]
    for text in others:
        yield BETWEEN + text


if __name__ == "__main__":
    options = vars(parse())
    with exit_on_error(ValueError, ImportError, RuntimeError, TypeError):
        get_backend()
    with exit_on_error(ValueError, ImportError, OSError):
        for piece in generate(options.pop("model"), options.pop("prompt"), **options):
            if not echo(piece, end=""):
                break
        echo("")
