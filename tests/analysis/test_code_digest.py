from bn_lightning.analysis.code_digest import code_digest


def test_code_that_is_written_twice_has_one_digest():
    assert code_digest((lambda: 1).__code__) == code_digest((lambda: 1).__code__)
    assert code_digest((lambda: 1).__code__) != code_digest((lambda: 2).__code__)


def test_code_inside_counts():
    assert code_digest((lambda: lambda: 1).__code__) != code_digest((lambda: lambda: 2).__code__)
