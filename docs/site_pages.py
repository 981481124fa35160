"""What the documentation site has beside the pages of ``docs/``: a hook of MkDocs (``hooks:`` in ``mkdocs.yml``).

README, CONTRIBUTING and the other pages of the root become pages of the site, notebooks become pages with their
kept outputs, and every file of the repository that a page links to is shown as source. So links work in the repository
and on the site as they are written, and the site needs no code host.
"""

import json
import os
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parent.parent

#: Pages of the root and where they stand on the site.
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "CODE_OF_CONDUCT.md": "project/conduct.md",
    "SECURITY.md": "project/security-policy.md",
}

LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^(`{3,}).*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    ".json": "json",
    ".csv": "text",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors of headings are those that code hosts make."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, the notebooks, and the sources that pages link to."""
    for file, uri in ROOT_PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / file).read_text(encoding="utf-8")))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, pictures = notebook_page(Path(notebook.abs_src_path or ""))
        uri = site_uri(f"docs/{notebook.src_uri}")
        files.append(File.generated(config, uri, content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"{os.path.dirname(uri)}/{name}", content=content))
    todo = [path for file in files if file.is_documentation_page() for path in sources(file)]
    while todo:
        path = todo.pop()
        if (uri := site_uri(path)) not in files.src_uris:
            files.append(page := File.generated(config, uri, content=source_page(path)))
            todo += sources_in(ROOT / path) if (ROOT / path).is_dir() else sources(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the pages of the site."""
    origin = repository_path(page.file.src_uri)
    if origin is None:
        return markdown

    def rewritten(link: re.Match[str]) -> str:
        path = target_of(origin, link[2])
        if path is None or (uri := site_uri(path)) not in files.src_uris:
            return link[0]
        place = os.path.relpath(uri, os.path.dirname(page.file.src_uri) or ".")
        return f"{link[1]}{place}{link[3] or ''}{link[4]}"

    return outside_code(markdown, rewritten)


def outside_code(markdown: str, rewritten: Any) -> str:
    """Rewrite the links of a page and leave its code blocks as they are."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(rewritten, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(rewritten, markdown[end:])])


def repository_path(uri: str) -> str | None:
    """The Markdown of the repository behind a page of the site; None for a page that shows other source."""
    for file, place in ROOT_PAGES.items():
        if place == uri:
            return file
    if not uri.startswith("source/"):
        return f"docs/{uri}"
    path = uri.removeprefix("source/")
    return path if (ROOT / path).is_file() else None


def site_uri(path: str) -> str:
    """Where a file of the repository stands on the site."""
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    if path.startswith("docs/") and not path.endswith(".py"):
        return path.removeprefix("docs/").replace(".ipynb", ".md")
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def target_of(origin: str, link: str) -> str | None:
    """The file of the repository that a link of a page leads to; None for an address."""
    if "://" in link or link.startswith("mailto:"):
        return None
    return os.path.normpath(os.path.join(os.path.dirname(origin), link))


def sources(file: File) -> list[str]:
    """Files of the repository that a page links to and that are no pages themselves."""
    origin = repository_path(file.src_uri)
    if origin is None:
        return []
    links = LINK.findall(FENCE.sub("", file.content_string))
    paths = [target_of(origin, link) for _, link, _, _ in links]
    return [
        path for path in paths if path and site_uri(path).startswith("source/") and (ROOT / path).exists()
    ]


def sources_in(folder: Path) -> list[str]:
    """Files of a folder and below it."""
    found = sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return [str(file.relative_to(ROOT)) for file in found if ".egg-info" not in str(file)]


def source_page(path: str) -> str:
    """A file as a page: its text in a block of code; of a folder, links to its files."""
    if (ROOT / path).is_dir():
        here = os.path.dirname(site_uri(path))
        lines = [f"- [{name}]({os.path.relpath(site_uri(name), here)})" for name in sources_in(ROOT / path)]
        return f"# {path}\n\n" + "\n".join(lines) + "\n"
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"# {path}\n\n{fence}{LANGUAGES.get(Path(path).suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def notebook_page(file: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown with its kept outputs, and the pictures among them by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{file.stem}-{len(pictures) + 1}.png"
                pictures[name] = b64decode("".join(data["image/png"]))
                parts.append(f"![output of the cell above]({name})")
            elif shown := "".join(output.get("text") or data.get("text/plain", "")).rstrip():
                parts.append(f"```text\n{shown}\n```")
    return "\n\n".join(parts) + "\n", pictures
