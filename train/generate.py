"""Generate text with a trained model: `python train/generate.py runs/shakespeare/model.safetensors --prompt "ROMEO:"`.

RG_BACKEND selects the backend.
"""

import argparse
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__" and not getattr(__spec__, "parent", None):  # run as a file: run the module instead
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    runpy.run_module("russellgrad.train.generate", run_name="__main__")
    sys.exit()

from russellgrad import get_backend
from russellgrad.checkpoint import load_model
from russellgrad.hub import CONFIG
from russellgrad.russelltransformer import Transformer

from .checkpoints import FOLDER, MODEL, latest_earlier_run
from .data import check_prompt, default_prompt
from .progress import command, command_line, echo, escape_controls, exit_on_error, is_command_line, is_terminal, option

_ARGUMENT = re.compile(r"(?<=needs )(tokens|num_samples|temperature|top_k|top_p)")
SEPARATOR = "\n" + 15 * "-" + "\n"  # between two texts


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Generate text with a model that train_transformer.py trained.")
    parser.add_argument("model", help="a model.safetensors file, a run's folder, or a folder of the Hugging Face hub")
    parser.add_argument(
        "--prompt", action="append", help="start of the text; may be repeated for several texts (default: a newline)"
    )
    parser.add_argument("--num-samples", type=int, default=1, help="number of texts for each prompt (default: 1)")
    parser.add_argument("--tokens", type=int, default=500, help="maximum number of new tokens (default: 500)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 always takes the most likely token (default: 0.8)"
    )
    parser.add_argument("--top-k", type=int, help="sample from the k most likely tokens only (default: all)")
    parser.add_argument(
        "--top-p", type=float, help="sample from the smallest set of tokens with this total probability"
    )
    parser.add_argument("--stop", help="end each text before this string")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
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
    """Generate texts and yield them in pieces, with SEPARATOR between two texts.

    All texts are generated in one batch. The first is yielded as it is generated, the others after that.

    Args:
        path: a model file, the folder of a run or of a checkpoint, or a folder of the Hugging Face hub.
        prompts: starts of the texts; by default a newline, or the first character of a vocabulary without newlines.
        tokens: the maximum number of new tokens in each text; a token is a character, if the model has no others.
        num_samples: the number of texts for each prompt.
        temperature, top_k, top_p, stop, seed: as in `Transformer.stream`.

    Raises:
        ValueError: num_samples < 1, or a prompt has a character that the vocabulary lacks.
        FileNotFoundError: there is no such file; names the model of an earlier run, or the command that trains one.
        And the exceptions of `load_model`, `Transformer.from_pretrained` and `Transformer.stream`.
    """
    if num_samples < 1:
        raise ValueError(f"generate: needs num_samples >= 1, got {num_samples}")
    path = Path(path)
    if _is_of_hub(path):
        model = Transformer.from_pretrained(path)
    else:
        model = load_model(model_file(path, f", and no {CONFIG} of a Hugging Face model" if path.is_dir() else ""))
    texts = [prompt for prompt in prompts or [default_prompt(model.tokenizer)] for _ in range(num_samples)]
    for text in texts:
        check_prompt(text, model.tokenizer)
    steps = model.stream(texts, tokens, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop, seed=seed)
    first, *others = texts
    yield first
    for piece, *pieces in steps:
        yield piece
        others = [text + more for text, more in zip(others, pieces, strict=True)]
    for text in others:
        yield SEPARATOR + text


def _is_of_hub(path: Path) -> bool:
    """Whether a path is a folder of the Hugging Face hub, and not of a run."""
    return (path / CONFIG).is_file() and not (path / FOLDER).exists()


def model_file(path: Path, other: str = "") -> Path:
    """The model file that a path stands for: itself, or that of a folder.

    Raises FileNotFoundError as `generate`; `other` says what else is missing.
    """
    file = path / MODEL if path.is_dir() or not (path.is_file() or path.suffix) else path
    if not file.is_file():
        earlier = latest_earlier_run(file.parent, MODEL)
        trainer = command("train_transformer") if is_command_line() else "russellgrad.train.train_transformer.train()"
        remedy = (
            f"the model of an earlier run is in {earlier}"
            if earlier
            else f"{trainer} trains a model; {option('out')} sets its folder"
        )
        raise FileNotFoundError(f"there is no file {file}{other}; {remedy}")
    return file


def main() -> None:
    """The command line. A terminal gets escapes for control characters; a file or a pipe gets the text itself."""
    options = vars(parse())
    with exit_on_error(ValueError, ImportError, RuntimeError, TypeError):
        get_backend()
    shown = escape_controls if is_terminal() else str
    with command_line(), exit_on_error(ValueError, ImportError, OSError):
        try:
            for piece in generate(options.pop("model"), options.pop("prompt"), **options):
                if not echo(shown(piece), end=""):
                    return
        except ValueError as error:  # names the arguments of `Transformer.stream`
            message = str(error).replace("needs max_new_", "needs ")
            raise ValueError(_ARGUMENT.sub(lambda found: option(found[0]), message)) from error
        echo("")


if __name__ == "__main__":
    main()
