"""A notebook as a page: its text, its code, and the outputs that are committed with it."""

import base64
import json
from typing import Any

HTML, PICTURE = "text/html", "image/png"


def page(text: str, name: str) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook (nbformat 4), and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(_fenced(source, "python"))
            for output in cell["outputs"]:
                parts.append(_output(output, name, pictures))
    note = f"*This page is the notebook `examples/{name}.ipynb`, with the outputs of its last run.*"
    parts.insert(1, note)
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def _fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    if output["output_type"] == "stream":
        return _fenced("".join(output["text"]))
    data = output["data"]
    if PICTURE in data:
        file = f"{name}-{len(pictures) + 1}.png"
        pictures[file] = base64.b64decode("".join(data[PICTURE]))
        return f"![What the cell above draws]({file})"
    if HTML in data:
        lines = (line.strip() for line in "".join(data[HTML]).splitlines())
        return '<div class="output">' + " ".join(line for line in lines if line) + "</div>"
    return _fenced("".join(data["text/plain"])) if "text/plain" in data else ""
