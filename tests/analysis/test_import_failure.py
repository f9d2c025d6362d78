from bn_lightning.analysis.import_failure import import_failure


def test_the_innermost_line_of_a_file_is_named():
    def broken():
        raise KeyError("lr")

    try:
        broken()
    except KeyError as error:
        said = str(import_failure("The module 'mine', which --model names,", error))
    assert said.startswith("The module 'mine', which --model names, fails as it is imported: KeyError: 'lr', at ")
    assert said.endswith("test_import_failure.py, line 6.")
