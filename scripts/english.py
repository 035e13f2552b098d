"""Find phrases that are not plain English, and say what to write instead. The rules are in CONTRIBUTING.md.

    python scripts/english.py          README, CONTRIBUTING, benchmarks/README.md and the pages of docs/
    python scripts/english.py --all    the strings and docstrings of src/, too
    python scripts/english.py FILE ...

Code, link targets and generated tables are not read. Exit code 1 if a phrase is found.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ("docs/reference/cli.md", "docs/reference/api.md")
# Pattern -> what to write instead.
PHRASES = {
    r"\bbeside\b": "compared with; next to; as well as",
    r"\banew\b": "again; re-initialised; resampled",
    r"\b(?:go|goes|went|going|gone) on\b": "continue, resume",
    r"\btold (?:right|apart)\b|\btell\w* (?:\w+ )?apart\b": "classified correctly; distinguished",
    r"\b(?:is|are|be|as) no number\b|\bnone on all\b": "NaN or infinite",
    r"\bwhat came (?:out|of)\b|\bwhat comes out\b": "the result",
    r"\bof (?:its|one's|your|our|their|his) own\b": "its own ..., a separate ...",
    r"\bthere (?:is|are) none\b|\bwhere none (?:is|are)\b": "no ... exists; if there is no ...",
    r"\bdrawn\b(?! (?:tokens|at))": "sampled; re-initialised; plotted",
    r"\b(?:nats|bits|tokens|FLOPs|bytes|experts?|loss|sequences) an? (?:token|byte|second|step|parameter)\b": "per",
    r"\bmany a\b": "many",
    r"\bof what is\b": "say which value",
    r"\b(?:for|of) ever\b": "permanently",
    r"\blikeliest\b": "most likely",
    r"\blikelier\b": "more likely",
    r"\bbut for\b": "except for",
    r"\bto the last (?:digit|bit)\b": "exactly, bit for bit",
    r"\bstands? still\b|\bstood still\b": "is frozen",
    r"\bwhen (?:it is |they are )?whole\b|\bhalf-written\b": "complete; incomplete",
    r"\bof account\b|\bworth speaking of\b": "negligible",
    r"\bby heart\b": "built in; memorised",
    r"\bcome by\b|\bcomes by\b": "get",
    r"\bfall(?:s|ing)? apart\b|\bfell apart\b": "break up",
    r"\bfavourite\b": "top-1",
    r"\bgives? back\b|\bgive it back\b": "return",
    r"\bmade (?:anew|again)\b": "made a second time",
    r"\b(?:is|are|was|were) (?:said|told)\b|\bsays so\b|\bsaid so\b": "reported, stated",
    r"\bat hand\b": "available",
    r"\bdear(?:er|est)?\b": "expensive",
    r"\bthe whole way\b": "all steps",
    r"\bhas (?:no|not) account\b": "negligible",
    r"\bwhat (?:became|becomes) of\b": "the effect on",
    r"\bnobody'?s\b|\bno one's\b": "not any model's",
    r"\bis for the data to say\b": "depends on the data",
    r"\bwished? for\b": "requested",
    r"\bsome (?:minutes|seconds|hours)\b": "a few",
    r"\bthe same again\b": "reproducibility",
    r"\bso many at once\b": "as many at a time",
    r"\b(?:a|one) (?:domain|token) and one (?:a|each)\b": "one per domain and per token",
    r"\blooked (?:through|after)\b": "checked; kept healthy",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bsets? out\b": "starts",
    r"\bcut off\b": "interrupted",
    r"\bspeak of\b|\bspeaks of\b": "describe",
}
# A phrase may run over the end of a line.
_PATTERNS = {
    re.compile(phrase.replace(" ", r"(?: +| *\n *)"), re.IGNORECASE): plain for phrase, plain in PHRASES.items()
}


def prose(text: str) -> str:
    """A Markdown page without code, generated parts and link targets, its lines in place."""
    for hidden in (
        r"^```.*?^```$",
        r"<!-- ([\w-]+):begin -->.*?<!-- \1:end -->",
        r"<!-- ((?:keys of )?\w+) -->\n.*?<!-- /\1 -->",
        r"<!--.*?-->",
        r"`[^`]*`",
        r"(?<=\])\([^)]*\)",
    ):
        text = re.sub(hidden, _blank, text, flags=re.DOTALL | re.MULTILINE)
    return text


def strings(source: str) -> str:
    """The strings of a Python file, each in its lines; docstrings, too."""
    lines = [""] * (source.count("\n") + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for offset, line in enumerate(node.value.splitlines()):
                place = min(node.lineno - 1 + offset, len(lines) - 1)
                lines[place] += f"{' ' if offset else ' | '}{line}"  # a phrase does not run on into the next string
    return re.sub(r"`[^`\n]*`", _blank, "\n".join(lines))


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, phrase and replacement."""
    for pattern, plain in _PATTERNS.items():
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), plain


def pages() -> list[Path]:
    """What is checked without arguments."""
    docs = [
        path for path in sorted((ROOT / "docs").rglob("*.md")) if path.relative_to(ROOT).as_posix() not in GENERATED
    ]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *docs]


def main(arguments: list[str]) -> int:
    files = [Path(name) for name in arguments if not name.startswith("--")] or pages()
    if "--all" in arguments:
        files += sorted((ROOT / "src").rglob("*.py"))
    count = 0
    for file in files:
        text = file.read_text(encoding="utf-8")
        for line, phrase, plain in sorted(findings(strings(text) if file.suffix == ".py" else prose(text))):
            count += 1
            print(f"{file}:{line}: {phrase!r}: write {plain}")
    if count:
        print(f"{count} phrases that are not plain English; the rules are in CONTRIBUTING.md", file=sys.stderr)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
