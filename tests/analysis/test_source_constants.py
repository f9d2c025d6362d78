import pytest

from bn_lightning.analysis.source_constants import source_names


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("a = 1\nb: float = -2.5\nc = d = 'x'\ne = (1, 2 ** 10)", {"a", "b", "c", "d", "e"}),
        ("class A:\n    a = 1\n    class B:\n        b = None", {"A.a", "A.B.b"}),
        ("import os, time\na = os.getpid()\nb = time.time()\nc = f'{a}'\nd = a\ne = __file__", set()),
        ("a = None\nif a: a = 2", set()),
        ("try:\n    import b\n    a = True\nexcept ImportError:\n    a = False", set()),
        ("a = 0\nfor a in (1, 2): ...\nb = 0\nwith open('') as b: ...\nc = 0\nimport c.d\ne = 0\ndef e(): ...", set()),
        ("a = 0\nb = 0\ndef f():\n    global a\n    a += 1\n    (lambda: None).b = 2", set()),
        ("class A:\n    made = 0\n    lr = 1\n    def f(self):\n        A.made += 1\n        self.lr = 2", {"A.lr"}),
        ("a = [1]\nb = {'x': (2, {3})}\nc = [f()]\nd = {**a}", {"a", "b"}),
        ("a: int\n__version__ = '1'\nx, y = 1, 2", set()),
        ("a = 1\nb = [a for a in ()]\ndef f():\n    a = 2", {"a"}),
        ("a = 0\nmatch 1:\n    case a: ...", set()),
        ("a = '\\d'", {"a"}),
        ("def (", set()),
        ("a = 1\0", set()),
    ],
)
def test_constants_are_what_is_set_once_to_what_is_written_out(text, constants):
    assert source_names(text.encode()).constants == constants


def test_state_is_what_is_set_later_and_not_on_the_object_itself():
    text = b"def f(self, net):\n    global made\n    made = 1\n    net.seen = 2\n    self.own = 3\n    return self.read"
    assert source_names(text).state == {"made", "seen"}


def test_defaults_count_where_all_of_them_are_written_out():
    text = (
        b"def f(a, b=1, *, c='x'): ...\ndef g(b=time.time()): ...\nclass A:\n    def __init__(self, d=[1], *, e): ...\n"
    )
    assert source_names(text).defaults == {"f", "A.__init__"}
