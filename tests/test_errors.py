"""ERRORS.md says what the tests provoke."""

import errors

import ipvg


def test_the_table_is_up_to_date():
    assert errors.TABLE.read_text(encoding="utf-8") == errors.table(), "run: python tests/errors.py"


def test_the_table_knows_every_error_of_ipvg():
    exported = (getattr(ipvg, name) for name in ipvg.__all__)
    own = {kind.__name__ for kind in exported if isinstance(kind, type) and issubclass(kind, Exception)}
    there = {row[0] for row in errors.rows()}
    assert own <= errors.MEANING.keys()
    assert {"ValueError", "TypeError", "FormatError", "OSError", "RuntimeError"} <= there
    assert len(errors.rows()) > 200
