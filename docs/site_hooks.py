"""What is special about this site: pages from outside of docs/, and links that are right in the repository, too."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository that become pages, and what these are called on the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "checkpoints/glyphcrm-tiny/README.md": "model-card.md",
    "docs/tour.ipynb": "tour.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
_FENCE_OR_LINK = re.compile(
    r"^```.*?^```$|\[(?P<text>[^\]]*)\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)", re.MULTILINE | re.DOTALL
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere."""
    for source, page in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=notebook_page(content) if page == "tour.md" else content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page, which are right where its file lies, into the site's.

    What is linked and is on no page (a source file, a folder) is named instead.
    """
    folder = posixpath.dirname(SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def on_the_site(match: re.Match[str]) -> str:
        if match["path"] is None:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, match["path"]))
        target = PAGES.get(path, path.removeprefix("docs/"))
        if target == path or not (ROOT / path).is_file():
            return f"{match['text']} (`{path}`)" if (ROOT / path).exists() else match[0]
        target = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")
        return f"[{match['text']}]({target}{match['anchor'] or ''})"

    return _FENCE_OR_LINK.sub(on_the_site, markdown)


def notebook_page(notebook: str) -> str:
    """Return a notebook, with the outputs that it holds, as Markdown."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
            if "image/png" in data:
                parts.append(f'<img alt="{text}" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">')
            else:
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"
