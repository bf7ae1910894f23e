"""Turns the pinned packages into prose and code documents, split by file.

Output, under CACHE/text/: prose.train.jsonl, prose.heldout.jsonl, code.train.jsonl and
code.heldout.jsonl, one {"source", "path", "text"} a line, in a fixed shuffled order.
"""

import ast
import gzip
import hashlib
import html
import json
import re
import tarfile
import zipfile
from pathlib import Path

from tqdm import tqdm

from sources import CACHE, SOURCES, archive_path

TEXT = CACHE / "text"
MODELS = Path(__file__).resolve().parents[1]
HELDOUT_SHARE = 0.02  # of the files
PACKAGE_CAP = {"code": 1_000_000, "docstrings": 2_500_000, "docs": 6_000_000, "api": 5_000_000}  # bytes

SKIPPED_PATH = re.compile(
    r"(^|/)(tests?|testing|locale|locales|migrations|_?vendor(ed)?|_?extern(al|als)?|node_modules|"
    r"data|datasets?|mappings|sampledata|unicode|lexers|contrib/gis/gdal)/|"
    r"(test_[^/]*|_?version|conftest|_builtins|[^/]*_pb2|[^/]*tables?)\.py$",
    re.I,
)
DOCS_PATH = re.compile(r"\.(rst|md|txt)$", re.I)
NOT_PROSE = re.compile(r"(requirements|sources|top_level|licen[cs]e|copying|authors|contributors|thanks|entry_points|manifest|cmakelists)", re.I)


def unit(key: str) -> float:
    """A number in [0, 1) fixed by `key`: every random choice here is one of these."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]) / 256**7


def members(path):
    """Yields (name, read) for the files of a wheel or an sdist, the sdist's top folder dropped."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, lambda info=info: archive.read(info)
    else:
        with tarfile.open(path) as archive:
            for info in archive:
                if info.isfile():
                    yield info.name.partition("/")[2], lambda info=info: archive.extractfile(info).read()


def strip_indented(lines, starts):
    """Drops each block indented deeper than the line before it for which `starts(line)` holds.

    The line itself stays when it carries words ("as follows::"), cut down to one colon.
    """
    kept, inside = [], None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if inside is not None:
            if not line.strip() or indent > inside:
                continue
            inside = None
            kept.append("")
        if starts(line):
            inside = indent
            if not line.lstrip().startswith(".."):
                kept.append(line.rstrip()[:-1])
        else:
            kept.append(line)
    return kept


BLOCK = re.compile(r"^\s*\.\. (code|code-block|sourcecode|ipython|parsed-literal|literalinclude|image|figure|"
                   r"csv-table|toctree|plot|math|testcode|testoutput|productionlist|index|autosummary|"
                   r"auto\w+|currentmodule|highlight|_[^ ]*:|\|)")


def clean_rst(text: str) -> str:
    """Prose of reStructuredText: no literal blocks, doctests or markup directives."""
    lines = text.expandtabs().splitlines()
    lines = strip_indented(lines, lambda s: BLOCK.match(s) or (s.rstrip().endswith("::") and not s.lstrip().startswith("..")))
    return clean_doctest("\n".join(lines))


def clean_doctest(text: str) -> str:
    """Drops interactive sessions: from a >>> line to the next blank line; plus excess blank lines."""
    text = re.sub(r"(?m)^[ \t]*>>>.*(\n[ \t]*\S.*)*\n?", "", text)
    text = re.sub(r"(?m)[ \t]+$", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def clean_markdown(text: str) -> str:
    """Prose of Markdown: no fenced or HTML blocks, no link targets."""
    text = re.sub(r"(?ms)^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$\n?", "", text)
    text = re.sub(r"<[^>\n]+>", "", text)
    text = re.sub(r"!?\[([^\]\n]*)\]\([^)\n]*\)", r"\1", text)
    return clean_doctest(text)


def docstrings(text: str) -> str:
    """All docstrings of a module that say something, each dedented, one after another."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node)
            if doc and len(doc) > 150:
                found.append(clean_rst(doc))
    return "\n\n".join(found)


def api_docs(raw: bytes) -> str:
    """The descriptions in a gzipped JSON service model, HTML tags removed."""
    found = []

    def walk(value):
        if isinstance(value, dict):
            for key, item in value.items():
                if key == "documentation" and isinstance(item, str) and len(item) > 120:
                    item = re.sub(r"</(p|li|ul|note|dt|dd)>|<br ?/?>", "\n", item)
                    item = html.unescape(re.sub(r"<[^>]+>", "", item))
                    found.append("\n".join(filter(None, (re.sub(r"\s+", " ", s).strip() for s in item.split("\n")))))
                else:
                    walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(json.loads(gzip.decompress(raw)))
    return "\n\n".join(dict.fromkeys(found))


def documents(source, seen_lines: set):
    """Yields (path, text) for one source, near-duplicates left out."""
    picked = []
    for name, read in members(archive_path(source)):
        if source.role == "api":
            if name.endswith("service-2.json.gz"):
                picked.append((name, api_docs(read())))
            continue
        wanted = DOCS_PATH.search(name) if source.role == "docs" else name.endswith(".py")
        if not wanted or SKIPPED_PATH.search(name) or (source.role == "docs" and NOT_PROSE.search(name)):
            continue
        text = read().decode("utf-8", "replace").replace("\r\n", "\n")
        if "\ufffd" in text or "\0" in text:
            continue
        if source.role == "docstrings":
            text = docstrings(text)
        elif source.role == "docs":
            text = clean_markdown(text) if name.lower().endswith(".md") else clean_rst(text)
        elif len(text) > 120_000 or len(text) > 70 * text.count("\n") or "generated" in text[:300].lower():
            continue  # minified, tables of data, or machine-made
        picked.append((name, text))

    left = PACKAGE_CAP[source.role]
    for name, text in sorted(picked, key=lambda item: unit(source.name + item[0])):
        if len(text) < 400 or sum(c.isascii() for c in text) < 0.97 * len(text):
            continue
        lines = [hash_line(s) for s in text.splitlines() if len(s.strip()) > 30]
        fresh = sum(line not in seen_lines for line in lines)
        if not lines or fresh < 0.6 * len(lines):
            continue
        seen_lines.update(lines)
        left -= len(text)
        if left < 0:
            return
        yield name, text


def hash_line(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.strip().encode(), digest_size=8).digest())


def build() -> None:
    """Writes the four .jsonl files (once)."""
    names = [f"{kind}.{split}" for kind in ("prose", "code") for split in ("train", "heldout")]
    if all((TEXT / f"{name}.jsonl").exists() for name in names):
        return
    TEXT.mkdir(parents=True, exist_ok=True)
    parts = {name: [] for name in names}
    seen = {"prose": set(), "code": set()}
    for source in tqdm(SOURCES, desc="extract", unit="package"):
        kind = "code" if source.role == "code" else "prose"
        size = 0
        for path, text in documents(source, seen[kind]):
            split = "heldout" if unit("split:" + source.name + path) < HELDOUT_SHARE else "train"
            parts[f"{kind}.{split}"].append({"source": source.name, "path": path, "text": text})
            size += len(text)
        tqdm.write(f"{source.name:24} {source.role:10} {size / 1e6:6.2f} MB")
    for name, docs in parts.items():
        docs.sort(key=lambda d: unit("order:" + d["source"] + d["path"]))
        temporary = TEXT / f"{name}.tmp"
        temporary.write_text("".join(json.dumps(d) + "\n" for d in docs))
        temporary.rename(TEXT / f"{name}.jsonl")
        print(f"{name}: {len(docs)} files, {sum(len(d['text']) for d in docs) / 1e6:.1f} MB")


def load(name: str) -> list[str]:
    """The texts of one split, e.g. load("code.train")."""
    with open(TEXT / f"{name}.jsonl") as lines:
        return [json.loads(line)["text"] for line in lines]


def write_samples() -> None:
    """Writes models/heldout-{code,prose}.txt and models/calibration-code.txt, whole held-out files."""
    for kind, names in (("code", ("heldout", "calibration")), ("prose", ("heldout",))):
        texts = [text for text in load(f"{kind}.heldout") if len(text) < 12_000]
        for name, size in zip(names, (150_000, 50_000)):
            taken = []
            while texts and sum(map(len, taken)) < size:
                taken.append(texts.pop(0))
            (MODELS / f"{name}-{kind}.txt").write_text("\n".join(taken))
