"""What the site takes from elsewhere when it is built, so that nothing is written twice."""

import ast
import re
from argparse import RawDescriptionHelpFormatter
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.structure.pages import Page

from reports.arguments import main_parser

ROOT = Path(__file__).resolve().parents[1]
PICTURE = re.compile(
    r"^(?P<indent> *)\[!\[(?P<alt>.*)\]\((?P<picture>gallery/.*)-light\.png\)\]\((?P<report>.*)\)$", re.MULTILINE
)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Called with the text of each page."""
    if page.file.src_uri == "gallery.md":
        return PICTURE.sub(picture, markdown)
    if page.file.src_uri == "examples.md":
        return markdown + "".join(example(path) for path in sorted((ROOT / "examples").glob("*.py")))
    if page.file.src_uri == "reference/command-line.md":
        return markdown.replace("<!-- diagnose --help -->", f"```text\n{usage()}```")
    return markdown


def picture(match: re.Match[str]) -> str:
    """A picture for light pages and one for dark ones; a link where pictures could not be taken, or not even that."""
    indent, alt, report = match["indent"], match["alt"], match["report"]
    if not (ROOT / "docs" / report).exists():
        return f"{indent}*`make docs` puts this report here.*"
    if not (ROOT / "docs" / f"{match['picture']}-light.png").exists():
        return f"{indent}[{alt}]({report})"
    shown = "".join(f"![{alt}]({match['picture']}-{scheme}.png#only-{scheme})" for scheme in ("light", "dark"))
    return f"{indent}[{shown}]({report})"


def usage() -> str:
    """What ``--help`` prints, as wide as a page whatever the terminal."""
    parser = main_parser()
    parser.formatter_class = partial(RawDescriptionHelpFormatter, width=80)
    return parser.format_help()


def example(path: Path) -> str:
    """The docstring of an example, and under it the whole file."""
    title, _, text = str(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))).partition("\n\n")
    name = f"examples/{path.name}"
    code = f'??? example "{name}"\n\n    ```py\n    --8<-- "{name}"\n    ```\n'
    return f"\n## {path.name} {{#{path.stem}}}\n\n**{title}**\n\n{text}\n\n{code}"
