"""Import paths: what they may name, and what is said when they name nothing."""

import sys
from pathlib import Path

import pytest

from imachsr.importing import blaming, call_object, check_arguments, import_object


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of its own name per test, since Python remembers what it imported."""
    name = f"outside_{tmp_path.name}".replace("-", "_")
    folder = tmp_path / name
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "deep" / "__init__.py").write_text("")
    (folder / "deep" / "parts.py").write_text(
        "value = 3\n"
        "def make_thing(size, *, colour='red'):\n    return (size, colour)\n"
        "def make_other(**options):\n    return options\n"
        "def broken(size):\n    raise TypeError('inside the user\\'s code')\n"
        "import json\n"
        "def parse(text):\n    return json.loads(text)\n"
        "class Thing:\n    def __init__(self, size=1):\n        self.size = size\n"
        "_hidden = 1\n"
    )
    (folder / "empty.py").write_text("_hidden = 1\n")
    (folder / "needs.py").write_text("import a_package_that_is_not_there\n")
    (folder / "wrong.py").write_text("raise KeyError('on import')\n")
    (folder / "typo.py").write_text("value = 1\n\ndef f(:\n    pass\n")
    (folder / "uses_typo.py").write_text(f"from {name} import typo\n")
    (folder / "half.py").write_text(f"from {name}.deep.parts import no_such_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_path_gives_the_object_itself(package: str) -> None:
    found = import_object(f"{package}.deep.parts:Thing")
    assert found is sys.modules[f"{package}.deep.parts"].Thing
    assert import_object(f"{package}.deep.parts:value") == 3


@pytest.mark.parametrize("path", ["", ":", "a.b", "a.b:", ":name", "a b:c", "a..b:c", ".a:b", "a:b.c", "a:b:c", "os.path:join()", "a/b.py:make"])
def test_a_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="an import path must have the form 'package.module:name', but got "):
        import_object(path)


@pytest.mark.parametrize("module", ["no_such_package_at_all", "no_such_package_at_all.module", "os.path.nothing", "json.nothing"])
def test_a_missing_module_is_named_with_what_to_do(module: str) -> None:
    with pytest.raises(ValueError, match=f"module '{module}' of import path '{module}:f' must be importable, but was not found; .* set PYTHONPATH"):
        import_object(f"{module}:f")


def test_a_missing_module_of_a_package_that_is_there_is_named(package: str) -> None:
    with pytest.raises(ValueError, match=f"module '{package}.deap' of import path .* must be importable, but was not found"):
        import_object(f"{package}.deap:f")


def test_a_missing_name_tells_the_nearest_public_ones(package: str) -> None:
    with pytest.raises(ValueError, match=f"module '{package}.deep.parts' must have 'make_thin', but has not; nearest: 'make_thing', 'make_other'"):
        import_object(f"{package}.deep.parts:make_thin")
    with pytest.raises(ValueError, match="nearest: 'value', 'make_thing', 'make_other'"):
        import_object(f"{package}.deep.parts:zzzzzz")
    with pytest.raises(ValueError, match="nearest: nothing public"):
        import_object(f"{package}.empty:anything")


def test_what_the_users_module_lacks_is_not_taken_for_the_module(package: str) -> None:
    with pytest.raises(
        ValueError, match=f"module '{package}.needs' .* must import, but: ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    ):
        import_object(f"{package}.needs:f")
    with pytest.raises(ValueError, match=f"module '{package}.half' .* must import, but: ImportError: cannot import name 'no_such_name'"):
        import_object(f"{package}.half:f")


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("wrong", r"KeyError: 'on import' \(wrong.py:1\)"),
        ("typo", r"SyntaxError: .* \(typo.py:3\)"),
        ("uses_typo", r"SyntaxError: .* \(typo.py:3\)"),
        ("needs", r"ModuleNotFoundError: No module named 'a_package_that_is_not_there' \(needs.py:1\)"),
    ],
)
def test_an_error_of_the_users_module_is_told_with_its_place(package: str, module: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"module '{package}.{module}' of import path '{package}.{module}:f' must import, but: {why}$") as caught:
        import_object(f"{package}.{module}:f")
    assert caught.value.__cause__ is not None, "the traceback can still be seen"


def test_a_class_or_function_is_called_with_the_arguments(package: str) -> None:
    assert call_object(f"{package}.deep.parts:make_thing", {"size": 3, "colour": "blue"}) == (3, "blue")
    assert call_object(f"{package}.deep.parts:Thing", {"size": 4}).size == 4
    assert call_object(f"{package}.deep.parts:make_other", {"anything": 1}) == {"anything": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"must take the arguments \(\), but: missing a required argument: 'size'; its signature is \(size, \*, colour='red'\)"),
        ({"size": 1, "color": 2}, r"must take the arguments \(size, color\), but: got an unexpected keyword argument 'color'"),
    ],
)
def test_wrong_arguments_are_told_with_the_signature(package: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call_object(f"{package}.deep.parts:make_thing", arguments)


def test_a_value_cannot_be_called(package: str) -> None:
    with pytest.raises(ValueError, match="parts:value' must be a class or function, but is a int"):
        call_object(f"{package}.deep.parts:value", {})


def test_an_error_inside_the_users_code_is_told_with_its_place(package: str) -> None:
    with pytest.raises(ValueError, match=rf"'{package}.deep.parts:broken' must work, but: TypeError: inside the user's code \(parts.py:7\)$"):
        call_object(f"{package}.deep.parts:broken", {"size": 1})


def test_the_place_is_the_users_even_where_a_library_raises(package: str) -> None:
    with pytest.raises(ValueError, match=r"must work, but: JSONDecodeError: Expecting value: line 1 column 1 \(char 0\) \(parts.py:10\)$"):
        call_object(f"{package}.deep.parts:parse", {"text": "no JSON"})


def test_an_interrupt_is_no_error_of_the_user(package: str) -> None:
    with pytest.raises(KeyboardInterrupt), blaming("it", package):
        raise KeyboardInterrupt


def test_positional_arguments_of_the_caller_count() -> None:
    check_arguments("x:y", lambda output, labels, *, ignore_index: 0, {"ignore_index": 255}, positional=2)
    with pytest.raises(ValueError, match="missing a required argument: 'labels'"):
        check_arguments("x:y", lambda output, labels: 0, {}, positional=1)
    with pytest.raises(ValueError, match="multiple values for argument 'output'"):
        check_arguments("x:y", lambda output, labels: 0, {"output": 1}, positional=2)


def test_a_signature_that_python_does_not_know_is_trusted() -> None:
    check_arguments("builtins:map", map, {"anything": 1})
