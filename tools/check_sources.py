"""Looks up every source that the recipes and the trainers' settings name: does the path exist at its revision, are there so many lines, is the
name in the file, and does a range of lines end inside a function that begins within it (then it runs too far)?

Run by hand, where the repositories can be had:

    python tools/check_sources.py --clones FOLDER     FOLDER/OWNER+NAME, FOLDER/NAME or FOLDER/NAME.git: clones, bare or not
    python tools/check_sources.py                     files from raw.githubusercontent.com
    python tools/check_sources.py --list              what would be looked up

A source is `alias:path`, `alias:path:lines` or `alias:path name`, several of them with `;` or `and` between; the file's
[sources] says what an alias is. Words without an alias are not looked up. A package (`transformers 5.23.0`) is looked up
where that version is installed, and named as not checked elsewhere.
"""

import argparse
import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = re.compile(r"github\.com/([\w.-]+/[\w.-]+) at ([0-9a-f]{7,40})")
PACKAGE = re.compile(r"^([\w-]+) (\d[\w.]*)$")
BELOW = re.compile(r"below ([\w./-]+?)/?(?=$|[;, ])")
OF_FILE = re.compile(r"lines of ([\w./-]+) where")
LINES = re.compile(r"^\d+(-\d+)?(,\d+(-\d+)?)*$")
NAME = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")


class Alias:
    """What an alias of a recipe file stands for."""

    def __init__(self, text, clones):
        self.clones = clones
        found, package = REPOSITORY.search(text), PACKAGE.match(text)
        self.repository, self.revision = found.groups() if found else (None, None)
        self.package, self.version = package.groups() if package else (None, None)
        below, of_file = BELOW.search(text), OF_FILE.search(text)
        self.below = below.group(1) + "/" if below else ""
        self.file = of_file.group(1) if of_file else None
        if self.repository == "huggingface/diffusers":
            self.below = "src/diffusers/"

    def read(self, path):
        """The text of a file; an exception that says why not."""
        if self.package:
            return installed(self.package, self.version, path)
        if not self.repository:
            raise Unchecked("neither a repository with a revision nor a package with a version")
        if self.clones:
            return from_clone(self.clones, self.repository, self.revision, path)
        return from_github(self.repository, self.revision, path)

    def find(self, path):
        """As `read`, below the alias's folder or, where it is not there, from the repository's root."""
        for folder in dict.fromkeys([self.below, ""]):
            try:
                return self.read(folder + path)
            except FileNotFoundError:
                continue
        raise FileNotFoundError(path)


class Unchecked(Exception):
    """Nobody here can look."""


@cache
def installed(package, version, path):
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise Unchecked(f"{package} {version} is not installed") from None
    if distribution.version != version:
        raise Unchecked(f"{package} {distribution.version} is installed, not {version}")
    return Path(distribution.locate_file(f"{package}/{path}")).read_text(encoding="utf-8")


@cache
def from_clone(clones, repository, revision, path):
    owner, name = repository.split("/")
    folders = [clones / f"{owner}+{name}", clones / name, clones / f"{name}.git"]
    folder = next((f for f in folders if f.exists()), None)
    if folder is None:
        raise Unchecked(f"no clone of {repository}")
    git = ["git", "-C", str(folder.resolve())]
    if subprocess.run([*git, "cat-file", "-e", f"{revision}^{{commit}}"], capture_output=True).returncode:
        raise Unchecked(f"the clone of {repository} lacks {revision}")
    shown = subprocess.run([*git, "show", f"{revision}:{path}"], capture_output=True)
    if shown.returncode:
        raise FileNotFoundError(path)
    return shown.stdout.decode("utf-8", "replace")


@cache
def from_github(repository, revision, path):
    url = f"https://raw.githubusercontent.com/{repository}/{revision}/{path}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(path) from None
        raise Unchecked(f"{url}: {error}") from None
    except OSError as error:
        raise Unchecked(f"{url}: {error}") from None


def citations(file, clones):
    """(alias, what it says, where it stands) of every source in a recipe file."""
    data = tomllib.loads(file.read_text(encoding="utf-8"))
    aliases = {name: Alias(text, clones) for name, text in data.get("sources", {}).items()}
    base = data.get("base")
    if base:
        parent = tomllib.loads((file.parent / f"{base}.toml").read_text(encoding="utf-8"))
        for name, text in parent.get("sources", {}).items():
            aliases.setdefault(name, Alias(text, clones))
    for text in sources_in(data):
        for part in re.split(r"; | and (?=\w+:)", text):
            name, colon, rest = part.partition(":")
            if colon and name in aliases:
                yield aliases[name], rest, f"{file.relative_to(ROOT)}: {part}"


def sources_in(node):
    if isinstance(node, list):
        for item in node:
            yield from sources_in(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "source" and isinstance(value, str):
                yield value
            elif key != "sources":
                yield from sources_in(value)


def problem(alias, said):
    """What is wrong with `path`, `path:lines`, `path name`, `lines` or `name`; nothing if it holds."""
    said = said.strip()
    path, lines, names = alias.file, None, []
    for word in re.split(r"[: ]", said):
        if LINES.match(word):
            lines = word
        elif "/" in word or re.search(r"\.(py|yaml|toml|md|json|txt)$", word):
            path = word
        elif NAME.match(word):
            names.append(word)
        elif word:
            break
    if path is None:
        return "it names no file"
    try:
        text = alias.find(path)
    except FileNotFoundError:
        return f"there is no {path} at {alias.revision or alias.version}"
    wrong = lines_problem(text, lines, path) if lines else None
    missing = [name for name in names if not is_defined(text, name)]
    return wrong or (f"{path} defines no {', '.join(missing)}" if missing else None)


def is_defined(text, name):
    return all(re.search(rf"\b(def|class) {re.escape(part)}\b|^\s*{re.escape(part)}\b *[:=]", text, re.MULTILINE) for part in name.split("."))


def lines_problem(text, lines, path):
    count = len(text.splitlines())
    for span in lines.split(","):
        first, _, last = span.partition("-")
        first, last = int(first), int(last or first)
        if not 1 <= first <= last <= count:
            return f"lines {span} of a file of {count}"
        if path.endswith(".py"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and first < node.lineno <= last < node.end_lineno:
                    return f"lines {span} end inside `{node.name}`, which begins at {node.lineno} and ends at {node.end_lineno}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clones", type=Path)
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    wrong, unchecked, looked_up = [], {}, 0
    files = [*sorted((ROOT / "configs/recipes").glob("*/*.toml")), *sorted((ROOT / "configs/trainers").glob("*.toml"))]
    for file in files:
        for alias, said, where in citations(file, arguments.clones):
            if arguments.list:
                print(where)
                continue
            try:
                found = problem(alias, said)
            except Unchecked as why:
                unchecked[str(why)] = unchecked.get(str(why), 0) + 1
                continue
            looked_up += 1
            if found:
                wrong.append(f"{where}: {found}")
    for line in dict.fromkeys(wrong):
        print(line)
    for why, times in unchecked.items():
        print(f"not checked ({times}): {why}")
    if not arguments.list:
        print(f"{looked_up} sources looked up, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
