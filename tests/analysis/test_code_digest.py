import pytest

from bn_lightning.analysis.code_digest import code_digest


def made(text):
    names = {}
    exec(text, names)
    return code_digest(names["f"].__code__)


def test_code_that_is_written_twice_has_one_digest():
    assert code_digest((lambda: 1).__code__) == code_digest((lambda: 1).__code__)
    assert code_digest((lambda: 1).__code__) != code_digest((lambda: 2).__code__)


def test_code_inside_counts():
    assert code_digest((lambda: lambda: 1).__code__) != code_digest((lambda: lambda: 2).__code__)


@pytest.mark.parametrize("words", ["'''Words.'''", "'''Others,\n    and more.'''", "# a comment"])
def test_what_documents_a_function_does_not_count(words):
    body = "    y = x + 'a'\n    return y, (lambda: 'b')\n"
    assert made(f"def f(x):\n    {words}\n{body}") == made(f"def f(x):\n{body}")
    inner = "def f():\n    def g():\n        {}\n        return 'c'\n    return g\n"
    assert made(inner.format(words)) == made(inner.format("# nothing"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(): return 'a'", "def f(): return 'b'"),
        ("def f():\n    'doc'\n    return 'a'", "def f():\n    'doc'\n    return 'b'"),
        ("f = lambda: 'a'", "f = lambda: 'b'"),
        ("def f(x): return x", "def f(*x): return x"),
        ("def f(x): return x", "def f(**x): return x"),
        ("def f(x, y): return x", "def f(x, /, y): return x"),
        ("def f(x, y): return x", "def f(x, *, y): return x"),
        ("def f(x, y): return x", "def f(y, x): return y"),
        ("def f(x):\n    try: g()\n    finally: h()\n", "def f(x):\n    g()\n    h()\n"),
    ],
)
def test_what_a_function_does_and_takes_counts(one, other):
    assert made(one) != made(other)
