"""Tests of the source itself: sizes, docstrings, and what may be named where. Limits that no linter rule expresses.

A limit is not raised to let a change in; the change is made smaller.
"""

import ast
import functools
import re
import statistics
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [name for name in ("blip3o", "jobs", "serve", "cluster", "benchmarks") if (ROOT / name).is_dir()]
MAX_FILE_LINES = 400
MAX_TEST_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_FUNCTION_LINES = 15
MAX_BROAD_EXCEPTS = 2
# Hosts that a file may name: documentation, papers, and this machine. A new one is added here, with thought.
HOSTS = {
    *("127.0.0.1", "localhost", "arxiv.org", "github.com", "huggingface.co", "www.apache.org", "www.w3.org"),
    *("efa-installer.amazonaws.com", "storage.googleapis.com", "www.googleapis.com"),  # what nodes of a cloud ask
    *("git-lfs.github.com", "hawser.github.com"),  # stand in every pointer of Git LFS
}

# First parts of absolute paths that a file may name: those of any Linux, routes of HTTP, and names made up in tests.
KNOWN_FOLDERS = {
    *("bin", "data", "dev", "etc", "home/ray", "opt", "proc", "srv", "tmp", "usr", "var"),
    *("api", "aws", "chat", "page", "v1"),
    *("a", "bucket", "nowhere", "secret"),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
SOURCES = sorted(path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(_text(ROOT / path))


def _text(path: Path) -> str:
    """A file's text, in whatever locale the tests run."""
    return path.read_text(encoding="utf-8")


def _lines(path: Path) -> int:
    return len(_text(ROOT / path).splitlines())


def _functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(_tree(path)) if isinstance(node, Function)]


def _length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _listed() -> list[Path]:
    """Every file that belongs to the project: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run([*command, "-z"], cwd=ROOT, capture_output=True, encoding="utf-8")
    if listed.returncode:
        pytest.skip("not a git checkout: the project's files cannot be told from others")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def _text_files() -> list[Path]:
    """The files of the project that hold text."""
    return [path for path in _listed() if path.is_file() and b"\0" not in path.read_bytes()]


def test_files_are_short():
    long = {str(path): _lines(path) for path in SOURCES if _lines(path) > MAX_FILE_LINES}
    assert not long | {str(path): _lines(path) for path in TESTS if _lines(path) > MAX_TEST_FILE_LINES}


def test_functions_are_short():
    lengths = {f"{path}:{f.lineno} {f.name}": _length(f) for path in SOURCES for f in _functions(path)}
    assert not {where: length for where, length in lengths.items() if length > MAX_FUNCTION_LINES}
    assert statistics.median(lengths.values()) <= MAX_MEDIAN_FUNCTION_LINES


def test_every_module_has_a_docstring():
    assert not [str(path) for path in (*SOURCES, *TESTS) if not ast.get_docstring(_tree(path))]


def _undocumented(path: Path) -> list[str]:
    """Public functions and classes at module level, and public methods of public classes."""
    top = [node for node in _tree(path).body if isinstance(node, (*Function.__args__, ast.ClassDef))]
    public = [node for node in top if not node.name.startswith("_")]
    for owner in [node for node in public if isinstance(node, ast.ClassDef)]:
        public += [n for n in owner.body if isinstance(n, Function) and not n.name.startswith("_")]
    return [f"{path}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)]


def test_everything_public_has_a_docstring():
    assert not [where for path in SOURCES for where in _undocumented(path)]


def _is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)


def test_broad_excepts_are_few():
    handlers = [(p, n) for p in SOURCES for n in ast.walk(_tree(p)) if isinstance(n, ast.ExceptHandler)]
    broad = [f"{path}:{handler.lineno}" for path, handler in handlers if _is_broad(handler)]
    assert len(broad) <= MAX_BROAD_EXCEPTS, broad


@functools.cache
def _words(path: Path) -> list[tuple[int, str]]:
    """Line and text of every name, attribute and string of the code, without comments and docstrings."""
    docstrings = {id(node.value) for node in ast.walk(_tree(path)) if isinstance(node, ast.Expr)}
    words = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Name):
            words.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute):
            words.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words.append((node.lineno, node.value))
    return words


@pytest.mark.parametrize(
    ("pattern", "home"),
    [
        (r"(?i)cuda|nccl", "blip3o/device.py"),
        (r"\bos\.(environ|getenv|putenv)\b", "blip3o/settings.py"),
    ],
)
def test_some_names_have_one_home(pattern, home):
    elsewhere = [path for path in SOURCES if str(path) != home]
    assert not [f"{p}:{line} {word}" for p in elsewhere for line, word in _words(p) if re.search(pattern, word)]


def _is_text_by_locale(call: ast.Call) -> bool:
    names = {keyword.arg for keyword in call.keywords}
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    of_path = method == "write_text" or (method == "read_text" and not call.args)
    return "encoding" not in names and (of_path or "text" in names and "subprocess" in ast.unparse(call.func))


def test_text_does_not_depend_on_the_locale():
    calls = [(path, node) for path in SOURCES for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
    assert not [f"{path}:{call.lineno} names no encoding" for path, call in calls if _is_text_by_locale(call)]


# Values of these names are paths below the temporary folder, whose name may hold anything.
_PATHS = {"base", "file", "path", "tmp_path", "uri"}


def _unescaped(call: ast.Call) -> set[str]:
    """The paths that stand unescaped in a regular expression `match=f"…"`."""
    expected = [word.value for word in call.keywords if word.arg == "match"]
    fields = [field for value in expected for field in ast.walk(value) if isinstance(field, ast.FormattedValue)]
    return {ast.unparse(field.value).removeprefix("str(").rstrip(")") for field in fields} & _PATHS


def test_tests_do_not_depend_on_the_user_or_on_the_name_of_the_temporary_folder():
    calls = [(path, node) for path in TESTS for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
    assert not [f"{path}:{call.lineno} escape {names}" for path, call in calls if (names := _unescaped(call))]
    asked = ("Path.home", "getpass.getuser", "os.getlogin", "socket.gethostname")
    assert not [f"{path}:{call.lineno}" for path, call in calls if ast.unparse(call.func).endswith(asked)]


def test_no_link_is_among_the_files():
    """A link to another folder means nothing on another machine, and `ray job submit` uploads what it leads to."""
    assert not [str(path) for path in _listed() if path.is_symlink()]


def test_no_file_names_this_machine():
    """Every absolute path of two or more parts begins as on any machine, or is made up. No home folder is named.

    The checkout's own path and the user's home are not looked for: a shipped file may name the folder that a stranger
    clones into.
    """
    path = re.compile(r"(?:(?<=file://)|(?<![\w./~:)}\]>*<\\-]))/(home/\w+|Users/\w+|[r]oot\b|[a-zA-Z_]\w*(?=/[\w.]))")
    named = [(file.relative_to(ROOT), first) for file in _text_files() for first in path.findall(_text(file))]
    assert not sorted({f"{file}: /{first}" for file, first in named if first not in KNOWN_FOLDERS})


def test_no_file_names_a_package_registry_or_an_unknown_host():
    registry = re.compile(
        r"(?i)(?<![\w-])(?:[\w-]+\.)*(?:pypi|npmjs|pythonhosted)\.(?:org|com)\b|\b(?:extra-)?index-url\b"
    )
    for path in _text_files():
        text = _text(path)
        hosts = {host.split(":")[0] for host in re.findall(r"https?://([\w.:-]*\w)", text)}
        unknown = sorted(
            host for host in hosts - HOSTS if "." in host and not host.endswith((".example", ".example.com"))
        )
        assert not unknown, f"{path.relative_to(ROOT)} names {unknown}"
        if path != Path(__file__):
            assert not registry.search(text), f"{path.relative_to(ROOT)} names a package registry"


def _guides() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _named_paths(guide: Path) -> set[str]:
    """What a guide names in backticks below a folder of ours, and what it links to beside itself."""
    text = _text(guide)
    quoted = set(re.findall(r"`([\w./-]+)`", text))
    ours = {name for name in quoted if name.split("/")[0] in (*PACKAGES, "docs", "tests", ".ci") and "/" in name}
    here = guide.parent.relative_to(ROOT)
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    return ours | {str(here / link) for link in links}


@pytest.mark.parametrize("guide", _guides(), ids=lambda guide: guide.name)
def test_what_the_guides_name_exists(guide):
    text = _text(guide)
    assert not sorted(name for name in _named_paths(guide) if not (ROOT / name).exists())
    modules = {name for name in re.findall(r"python -m ([\w.]+)", text) if name.split(".")[0] in PACKAGES}
    files = {name: ROOT / (name.replace(".", "/") + ".py") for name in modules}
    assert not sorted(name for name, file in files.items() if not file.exists() and not file.with_suffix("").is_dir())
    targets = set(re.findall(r"^([a-z]+):", _text(ROOT / "Makefile"), re.MULTILINE))
    assert not set(re.findall(r"`make ([a-z]+)`", text)) - targets


# Files whose words are not ours: inputs and recorded replies of tests, dated results, the license, and this list.
_NOT_OURS = ("LICENSE", "benchmarks/results/", "constraints.txt", "shared", "tests/field/", "tests/test_style.py")
_DATA = "WORDS = "  # begins a line of benchmarks/data/_world.py that holds words for captions
_GAP = r"(?:[ \t]|\n[ \t#]*)+"  # a phrase goes over the end of a line, also of a comment


@functools.cache
def _prose() -> dict[str, str]:
    """The texts that people of this project wrote, by file name."""
    named = {str(path.relative_to(ROOT)): path for path in _text_files()}
    return {name: _text(path) for name, path in named.items() if not name.startswith(_NOT_OURS)}


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        ("afresh|anew", "again, from the start"),
        ("at one thing", "busy with one thing"),
        ("beside", "next to, with, on top of, in addition to, while"),
        ("(is|was|are|were) cut(?! off)", "truncated, resharded, disconnected"),
        ("for ever", "forever"),
        ("go(es)? on", "continue, resume"),
        ("ha(s|ve) not the", "does not have the"),
        ("in passing", "temporarily, transient"),
        ("lacking", "missing, without"),
        ("mend(s|ed)?", "fix, repair, recover"),
        ("seldom", "rarely"),
        ("so many", "the number itself; many"),
        ("tells", "says, reports, prints, shows, distinguishes"),
        ("thrice", "three times"),
    ],
)
def test_words_that_readers_stumble_over_are_gone(words, instead):
    """A ratchet: each of these was in a hundred places. A word that is swept out is added; none is taken back."""
    phrase = re.compile(rf"(?i)(?<![\w-])({words.replace(' ', _GAP)})(?![\w-])")
    found = []
    for name, text in _prose().items():
        for match in phrase.finditer(text):
            line = text[text.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0].strip()
            if not line.startswith(_DATA):
                found.append(f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {line}")
    assert not found, f"write {instead}:\n" + "\n".join(found)
