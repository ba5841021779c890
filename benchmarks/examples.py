"""Runs the examples in full and writes their results to docs/examples.md: `python -m benchmarks.examples`.

Each example runs in its own process, one after the other. The pictures are written to docs/. To run some examples and
update only their sections of the page, name them: `python -m benchmarks.examples digits vae`.
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, circumstances

PAGE = ROOT / "docs" / "examples.md"
EXAMPLES: dict[str, tuple[str, ...]] = {  # the arguments of each run
    "line": ("",),
    "logistic": ("",),
    "spirals": ("",),
    "digits": ("--model linear", "--model conv"),
    "digits_torch": ("",),
    "char_lstm": ("",),
    "vae": ("",),
    "pole": ("",),
}
PICTURES = {
    "spirals": ("spirals.png", "The regions that the model predicts, and the training points"),
    "vae": ("vae.png", "Left: the encoder's mean for each image. Right: the decoder's image for each point of a grid"),
}


def main() -> None:
    names = sys.argv[1:] or list(EXAMPLES)
    if unknown := set(names) - set(EXAMPLES):
        sys.exit(f"examples: unknown {', '.join(sorted(unknown))}; known are {', '.join(EXAMPLES)}")
    page = PAGE.read_text(encoding="utf-8")
    for name in names:
        page = replace(page, name, section(name))
    PAGE.write_text(
        replace(page, "machine", f"Measured on {circumstances(__name__)['processor']}, with two threads.\n"),
        encoding="utf-8",
    )


def replace(page: str, name: str, text: str) -> str:
    """The page with `text` between the comments that mark the part `name`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        sys.exit(f"examples: {PAGE} has no part {begin.strip()} ... {end.strip()}")
    return pattern.sub(lambda _: begin + text + end, page)


def section(name: str) -> str:
    """The description of an example, its commands and what they print, and its picture."""
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    title, _, description = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")
    text = f"## {title.split(':')[0]}\n\n{description}\n"
    for arguments in EXAMPLES[name]:
        command = f"python examples/{name}.py {arguments}".strip()
        text += f"\n```shell\n{command}\n```\n\n```text\n{output(name, arguments)}```\n"
    if name in PICTURES:
        file, caption = PICTURES[name]
        text += f"\n![{caption}]({file})\n"
    return text


def output(name: str, arguments: str) -> str:
    """What a run prints, in float64 or float32 as the example chooses, with two threads. Pictures go to docs/."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments.split()]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"examples: {name} failed\n{done.stderr}")
        for picture in Path(folder).glob("*.png"):
            (ROOT / "docs" / picture.name).write_bytes(picture.read_bytes())
    print(done.stdout, flush=True)
    return done.stdout


if __name__ == "__main__":
    main()
