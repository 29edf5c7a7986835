"""Guidance is data: every formula that is linear in the branches works, every other one is refused at its spot."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ipvg import guidance as G
from ipvg.guidance import Branch, Guidance, control
from ipvg.guidance.formula import Formula, FormulaError
from ipvg.schedule import Schedule

BRANCHES, WEIGHTS = ("cond", "uncond", "weak"), {"w": 5.0, "s": 0.5, "zero": 0.0}
PRESETS = [preset() for preset in G.PRESETS.values()]


# ---- the formula ----


def expressions(leaf):
    def grow(inner):
        return st.one_of(
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            inner.map(lambda t: f"-{t}"),
            inner.map(lambda t: f"({t})"),
        )

    return st.recursive(leaf, grow, max_leaves=12)


NUMBERS = st.one_of(st.sampled_from(list(WEIGHTS)), st.floats(0.25, 8).map(lambda x: repr(round(x, 3))), st.just("2"))
SCALARS = expressions(NUMBERS)


@st.composite
def linear(draw, depth=3):
    """A formula that is linear in the branches by construction."""
    if depth == 0:
        return draw(st.sampled_from(BRANCHES))
    a = draw(linear(depth=depth - 1))
    match draw(st.integers(0, 4)):
        case 0:
            return f"({a} {draw(st.sampled_from('+-'))} {draw(linear(depth=depth - 1))})"
        case 1:
            return f"({draw(SCALARS)})*{a}"
        case 2:
            return f"{a}*({draw(SCALARS)})"
        case 3:
            return f"{a}/({draw(SCALARS)})"
    return f"-{a}"


@settings(deadline=None, max_examples=400)
@given(linear())
def test_a_linear_formula_gives_what_numpy_gives(text):
    v = dict(zip(BRANCHES, np.random.default_rng(0).normal(size=(3, 5)), strict=True))
    try:
        with np.errstate(all="ignore"):
            expected = eval(text, {"__builtins__": {}}, {**v, **WEIGHTS})
    except ZeroDivisionError:
        expected = np.array(np.inf)
    formula = Formula(text, BRANCHES, WEIGHTS)
    if not np.isfinite(expected).all():
        with pytest.raises(FormulaError, match=r"division by zero|coefficient"):
            formula.coefficients(WEIGHTS)
        return
    coefficients = formula.coefficients(WEIGHTS)
    ours = sum(c * v[name] for name, c in coefficients.items())
    size = sum(abs(c) for c in coefficients.values())
    assume(size < 1e12)
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9 * max(size, 1))


@settings(deadline=None, max_examples=400)
@given(expressions(st.one_of(NUMBERS, st.sampled_from(BRANCHES))))
def test_whatever_is_accepted_is_linear(text):
    """Doubling every branch doubles the result, and no branch at all gives nothing; anything else was refused."""
    try:
        Formula(text, BRANCHES, WEIGHTS)
    except FormulaError as error:
        assert "at column" in str(error)
        return
    names = dict.fromkeys(WEIGHTS, 0.5)

    def value(scale):
        return eval(text, {"__builtins__": {}}, {**{b: scale * (i + 1.0) for i, b in enumerate(BRANCHES)}, **names})

    try:
        one, two, nothing = value(1.0), value(2.0), value(0.0)
    except (ZeroDivisionError, OverflowError):
        return
    assert nothing == 0 and two == pytest.approx(2 * one, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=500)
@given(st.text(max_size=60) | st.text("condw+-*/()., 0123e[]{}'\":=", max_size=40))
def test_any_text_is_a_formula_or_an_error(text):
    try:
        Formula(text, BRANCHES, WEIGHTS)
    except FormulaError:
        pass


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("cond*uncond", 1, "not linear"),
        ("w*cond + 2*(cond + 1)", 13, "number cannot be added"),
        ("cond/uncond", 6, "dividing by a branch"),
        ("cond + foo", 8, "'foo' is neither"),
        ("cond + w**2*cond", 8, "understood"),
        ("__import__('os').system('true')", 1, "understood"),
        ("cond + [cond][0]", 8, "understood"),
        ("cond if w else uncond", 1, "understood"),
        ("cond * True", 8, "understood"),
        ("cond * 1j", 8, "understood"),
        ("cond * 1e400", 8, "beyond"),
        ("w + s", 1, "no branch"),
        ("(cond", 1, "not a formula"),
        ("", 1, "not a formula"),
    ],
)
def test_a_bad_formula_names_its_spot(text, column, why):
    with pytest.raises(FormulaError, match=why) as caught:
        Formula(text, BRANCHES, WEIGHTS)
    message, *_, marks = str(caught.value).split("\n")
    assert f"at column {column}:" in message and marks.index("^") == 4 + column - 1


@pytest.mark.parametrize(
    "text", ["(" * 150 + "cond" + ")" * 150, "-" * 1900 + "cond", "cond" + "+cond" * 399, "cond" * 501, "\0cond"]
)
def test_a_monstrous_formula_is_an_error_or_works(text):
    try:
        Formula(text, BRANCHES, WEIGHTS).coefficients(WEIGHTS)
    except FormulaError:
        pass


# ---- the object ----


@pytest.mark.parametrize("g", PRESETS, ids=list(G.PRESETS))
def test_presets_survive_json_pickle_and_hashing(g):
    back = Guidance.from_json(g.to_json())
    assert back == g and hash(back) == hash(g) and back.to_json() == g.to_json()
    assert pickle.loads(pickle.dumps(g)) == g
    assert sum(c[0] for c in g.coefficients(Schedule(1)).values()) == pytest.approx(1)  # the same in v and in x0
    assert g.combine in str(g) and all(name in str(g) for name in g.branches)


def test_presets_are_the_formulas_of_the_method():
    code = G.tpige_code(w=5, s=0.5)
    assert code.expanded() == "7.5 cond - 6 uncond - 0.5 weak"
    assert code.branches["weak"] == Branch(text="cond", reference="drop", skip_blocks=[2])
    assert code.branches["uncond"] == Branch(text="negative")
    assert G.tpige_aligned().branches["weak"] == Branch(text="cond", reference="absent", skip_blocks=[2])
    figure = G.tpige_figure(W_c=5, W_i=0.5)
    assert figure.expanded() == "5.5 cond - 4 uncond - 0.5 weak"
    assert figure.branches["weak"] == Branch(text="null", skip_blocks=[2])
    assert code.texts == ("cond", "negative") and figure.texts == ("cond", "null")


@given(st.floats(0, 20), st.floats(-2, 5))
def test_control_is_the_cfg_of_equal_weight(w, s):
    expected = pytest.approx(w * (1 + s) - s, abs=1e-9)
    for preset in (G.tpige_code, G.tpige_aligned):
        plain = control(preset(w=w, s=s))
        assert plain.weights["W"] == expected
        assert plain.branches == {"cond": Branch(), "uncond": Branch(text="negative")}
    assert control(G.tpige_figure(W_c=w, W_i=s)).weights["W"] == pytest.approx(w + s, abs=1e-9)
    assert control(G.cfg(w)).weights["W"] == pytest.approx(w)


def test_control_follows_weights_step_by_step():
    schedule = Schedule(3)
    listed = control(G.tpige_code(w=5, s=[0, 0.5, 1]))
    assert listed.weights["W"] == (5, 7, 9)
    called = control(G.tpige_code(w=lambda step, sigma: 5.0, s=lambda step, sigma: step / 2))
    assert called.resolve(schedule) == listed
    assert control(G.none()) == G.none()
    autoguidance = Guidance({"cond": {}, "weak": {"skip_blocks": [9]}}, "weak + w*(cond - weak)", w=3)
    assert control(autoguidance) == G.none()


def test_control_refuses_what_no_cfg_equals():
    three = Guidance({"cond": {}, "uncond": {"text": "a"}, "b": {"text": "b"}}, "cond + uncond - b")
    with pytest.raises(ValueError, match="texts"):
        control(three)
    with pytest.raises(ValueError, match="sum to 2"):
        control(Guidance({"cond": {}, "uncond": {"text": "negative"}}, "cond + uncond"))
    with pytest.raises(ValueError, match="no branch"):
        control(Guidance({"a": {}}, "a"))


def test_weights_may_differ_by_step_and_be_functions_of_sigma():
    schedule = Schedule(4, 16.0)
    interval = G.cfg(lambda step, sigma: 5.0 if 0.95 < sigma <= 0.99 else 1.0)
    c = interval.coefficients(schedule)
    inside = (schedule.sigmas[:-1] > 0.95) & (schedule.sigmas[:-1] <= 0.99)
    assert inside.any() and not inside.all()
    np.testing.assert_array_equal(c["cond"], np.where(inside, 5.0, 1.0))
    np.testing.assert_array_equal(c["uncond"], np.where(inside, -4.0, 0.0))
    with pytest.raises(TypeError, match=r"resolve\(schedule\)"):
        interval.to_json()
    resolved = interval.resolve(schedule)
    assert Guidance.from_json(resolved.to_json()) == resolved
    assert resolved.coefficients(schedule)["cond"].tolist() == c["cond"].tolist()
    with pytest.raises(ValueError, match="'w': 4 values for 5 steps"):
        resolved.coefficients(Schedule(5))


def test_order_of_branches_and_weights_means_nothing():
    a = Guidance({"x": {}, "y": {"text": "t"}}, "x + q*(x - y) + p*y - p*x", p=1, q=2)
    b = Guidance({"y": {"text": "t"}, "x": {}}, "x + q*(x - y) + p*y - p*x", q=2, p=1)
    assert a == b and hash(a) == hash(b) and a.to_json() == b.to_json()
    assert list(a.coefficients(Schedule(1))) == ["x", "y"]


def test_guidance_cannot_be_changed_in_place():
    g = G.cfg(5)
    with pytest.raises(AttributeError):
        g.combine = "cond"
    with pytest.raises(TypeError):
        g.branches["cond"] = Branch()
    assert g.replace(w=6).weights["w"] == 6 and g.weights["w"] == 5
    with pytest.raises(ValueError, match="no weight 'W'"):
        g.replace(W=6)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Guidance({}, "cond"), ValueError, "branches"),
        (lambda: Guidance({"cond": {}}, "cond", w=1), ValueError, "not in the formula: w"),
        (lambda: Guidance({"cond": {}, "u": {}}, "cond"), ValueError, "not in the formula: u"),
        (lambda: Guidance({"cond": {}, "w": {}}, "cond + w", w=1), ValueError, "a branch and of a weight"),
        (lambda: Guidance({"a b": {}}, "cond"), ValueError, "a b"),
        (lambda: Guidance({"cond": {}}, "cond/w", w=0), ValueError, "division by zero"),
        (lambda: Guidance({"cond": {}}, "w*cond", w=float("nan")), ValueError, "finite"),
        (lambda: Guidance({"cond": {}}, "w*cond", w=[]), ValueError, "empty"),
        (lambda: Guidance({"cond": {}}, "w*cond", w="5"), TypeError, "number"),
        (lambda: Guidance({"cond": {}}, "w*cond", w=True), TypeError, "number"),
        (lambda: Guidance({"cond": {"texts": "a"}}, "cond"), ValueError, "'texts' is unknown"),
        (lambda: Guidance({"cond": 3}, "cond"), TypeError, "Branch"),
        (lambda: Guidance({"cond": {}}, 3), TypeError, "combine"),
        (lambda: Guidance({f"b{i}": {} for i in range(17)}, "b0"), ValueError, "at most 16"),
        (lambda: Branch(text=""), ValueError, "text"),
        (lambda: Branch(reference="gone"), ValueError, "present, drop, absent"),
        (lambda: Branch(skip_blocks=[-1]), ValueError, "skip_blocks"),
        (lambda: Branch(skip_blocks=[1.5]), ValueError, "skip_blocks"),
        (lambda: Branch(skip_blocks="12"), TypeError, "skip_blocks"),
        (lambda: Branch(skip_blocks=3), TypeError, "skip_blocks"),
        (lambda: Branch(keep_hint=1), TypeError, "keep_hint"),
        (lambda: Branch(context_scale=float("inf")), ValueError, "context_scale"),
        (lambda: Branch(context_scale=None), TypeError, "context_scale"),
    ],
)
def test_what_cannot_work_says_so(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "other"}, "format"),
        ({"extra": 1}, "'extra' is unknown"),
        ({"combine": ...}, "'combine' is missing"),
        ({"weights": [1]}, "weights"),
        ({"weights": {"self": 1}}, "weights"),
        ({"branches": []}, "branches"),
    ],
)
def test_json_of_another_kind_is_refused(change, text):
    data = {k: v for k, v in {**G.cfg().to_dict(), **change}.items() if v is not ...}
    with pytest.raises(ValueError, match=text):
        Guidance.from_json(json.dumps(data))
