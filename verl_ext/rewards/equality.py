r"""Whether two readings of answers are the same answer. Pure functions over what reading.py returns.

What only one side says is not held against it: a unit, a base, a name. What both say must agree. Order counts in tuples,
words and ratios, and is free in lists and sets, where every element counts as often as it is written.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from fractions import Fraction

from verl_ext.rewards.answers import Answer, Based, Equation, Quantity, Ratio, Sequence, Value, Word
from verl_ext.rewards.exact import same, same_number
from verl_ext.rewards.numerals import is_rounding, numerals_equal


def equal(gold: Answer, answer: Answer) -> bool:
    """Whether `answer` says what `gold` says."""
    if gold.key == answer.key:
        return True
    for kind, rule in _RULES:
        if isinstance(gold, kind) or isinstance(answer, kind):
            return rule(gold, answer)
    return False


def equal_equations(gold: Answer, answer: Answer) -> bool:
    """x = 5 is 5, in either direction, and not y = 5; y = 2x + 3 is 2x - y + 3 = 0. A chain must agree with itself."""
    if isinstance(answer, Equation) and not _consistent(answer):
        return False
    if isinstance(gold, Equation) and isinstance(answer, Equation):
        if gold.left == answer.left:
            return equal(gold.right, answer.right)
        if (gold.left, gold.right.key) == (answer.right.key, answer.left):
            return True
        if _states_value(answer):
            return any(equal(gold, value) for value in _values(answer))
        if _states_value(gold):
            return equal_equations(gold.right, answer)
        return equal_values(gold, answer)
    if isinstance(gold, Equation):
        known = gold.named or _states_value(gold)
        return (known and any(equal(value, answer) for value in _values(gold))) or equal_values(gold, answer)
    return any(equal(gold, value) for value in _values(answer)) or equal_values(gold, answer)


def equal_sequences(gold: Answer, answer: Answer) -> bool:
    """Lists and sets element by element in any order; tuples, intervals and named values in theirs."""
    if not isinstance(gold, Sequence) or not isinstance(answer, Sequence):
        return _one_item(gold, answer)
    if {gold.brackets, answer.brackets} == {"\\cup"} and len(gold.parts) != len(answer.parts):
        return equal_values(gold, answer)
    named = _named(gold), _named(answer)
    if any(named) and not all(named):
        pairs = [(_by_name(one) if name else one.parts) for one, name in zip((gold, answer), named, strict=True)]
        return "{}" not in (gold.brackets, answer.brackets) and _in_order(*pairs)
    if gold.ordered and answer.ordered:
        return gold.brackets == answer.brackets and _in_order(gold.parts, answer.parts)
    if gold.ordered or answer.ordered:
        plain = answer if gold.ordered else gold
        tuples = (gold if gold.ordered else answer).brackets == "()"
        return plain.brackets == "" and tuples and _in_order(gold.parts, answer.parts)
    return _in_any_order(gold.parts, answer.parts)


def equal_ratios(gold: Answer, answer: Answer) -> bool:
    """1:2 is 2:4 and 1/2; 1:2:3 is no single number."""
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        first, second = gold.parts[0].text, answer.parts[0].text
        return len(gold.parts) == len(answer.parts) and all(
            equal_values(Value(rf"({g.text}) \cdot ({second})"), Value(rf"({a.text}) \cdot ({first})"))
            for g, a in zip(gold.parts[1:], answer.parts[1:], strict=True)
        )
    ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
    return len(ratio.parts) == 2 and equal(Value(f"\\frac{{{ratio.parts[0].text}}}{{{ratio.parts[1].text}}}"), other)


def equal_based(gold: Answer, answer: Answer) -> bool:
    """The same digits, and the same base where both name one."""
    if isinstance(gold, Based) and isinstance(answer, Based):
        return (gold.digits, gold.base) == (answer.digits, answer.base)
    based, other = (gold, answer) if isinstance(gold, Based) else (answer, gold)
    return isinstance(other, Value | Word) and other.key.upper().lstrip("0") == based.digits


def equal_quantities(gold: Answer, answer: Answer) -> bool:
    """Values in the same unit after conversion; a value alone if the other has no unit."""
    if isinstance(gold, Quantity) and isinstance(answer, Quantity):
        if gold.letter and answer.letter and equal_values(gold, answer):
            return True
        if gold.unit.unnamed or answer.unit.unnamed:
            return equal_values(gold.value, answer.value)
        return gold.unit.powers == answer.unit.powers and _scaled(gold, answer)
    quantity, other = (gold, answer) if isinstance(gold, Quantity) else (answer, gold)
    if quantity.compound or not isinstance(other, Value):
        return False
    if quantity.letter and equal_values(gold, answer):
        return True
    if quantity is gold and quantity.letter:
        return False  # 6m is not 6: the gold answer's m may be a variable
    return equal_values(quantity.value, other) or (
        quantity.unit.multiplier != 1 and equal_values(_times(quantity.value, quantity.unit.multiplier), other)
    )


def equal_words(gold: Answer, answer: Answer) -> bool:
    """The same letters in the same order; an angle may be read from either side. ab is a product if the other side is one."""
    if not isinstance(gold, Word) or not isinstance(answer, Word):
        return isinstance(gold, Word | Value) and isinstance(answer, Word | Value) and equal_values(gold, answer)
    if gold.figure and answer.figure and gold.figure != answer.figure:
        return False
    if "angle" in (gold.figure, answer.figure) and len(gold.letters) == 3 and gold.letters == answer.letters[::-1]:
        return True
    return gold.letters == answer.letters or _only_case_differs(gold.letters, answer.letters)


def equal_values(gold: Answer, answer: Answer) -> bool:
    """Equal numbers without any parser, else equal SymPy values."""
    one, other = (value if isinstance(value, Value) else Value(value.text) for value in (gold, answer))
    if one.numeral and other.numeral:
        return numerals_equal(one.numeral, other.numeral)
    try:
        return _equal_expressions(one, other)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - SymPy raises many types on what it cannot compare, such as a symbol and an interval
        return False


_RULES = (
    (Equation, equal_equations),
    (Sequence, equal_sequences),
    (Ratio, equal_ratios),
    (Based, equal_based),
    (Quantity, equal_quantities),
    (Word, equal_words),
    (Value, equal_values),
)


def _equal_expressions(one: Value, other: Value) -> bool:
    left, right = one.expression, other.expression
    written = next((v.numeral for v in (one, other) if v.numeral and not v.numeral.exact), None)
    if written and all(getattr(expression, "is_number", False) for expression in (left, right)):
        return same_number(left, right, written)
    return same(left, right)


def _consistent(equation: Equation) -> bool:
    r"""The constants of a chain are one number: 6/2 = 3, not 2 = 3. The last may be rounded: \sqrt{2} \approx 1.41."""
    *constants, last = [part for part in (*equation.others, equation.right) if _is_constant(part)] or [equation.right]
    return all(equal(constant, last) or _is_rounded(last, constant) for constant in constants)


def _is_constant(answer: Answer) -> bool:
    if not isinstance(answer, Value):
        return not isinstance(answer, Word)
    return answer.numeral is not None or bool(getattr(answer.expression, "is_number", False))


def _is_rounded(short: Answer, exact: Answer) -> bool:
    if not isinstance(short, Value) or not isinstance(exact, Value) or short.numeral is None:
        return False
    value = exact.numeral.value if exact.numeral else None
    if value is None:
        number = exact.expression.evalf(30)
        value = Fraction(str(number)) if number.is_Float else None
    return value is not None and is_rounding(short.numeral, value, digits=1)


def _states_value(equation: Equation) -> bool:
    """Whether it is about constants alone: 10/2 = 5 states 5, and 1 = x^2 + y^2 nothing of the kind."""
    return not equation.named and all(map(_is_constant, (*equation.others, equation.right)))


def _values(equation: Equation) -> list[Answer]:
    return [equation.right, *(other for other in equation.others if _is_constant(other))]


def _one_item(gold: Answer, answer: Answer) -> bool:
    """A set of one element is that element; an interval may be written as an inequality."""
    sequence, other = (gold, answer) if isinstance(gold, Sequence) else (answer, gold)
    if len(sequence.parts) == 1:
        return equal(sequence.parts[0], other)
    return isinstance(other, Value) and sequence.brackets != "" and equal_values(gold, answer)


def _named(sequence: Sequence) -> bool:
    """Whether each part names a value and no name comes twice: x = 1, y = 2."""
    names = [part.left for part in sequence.parts if isinstance(part, Equation) and part.named]
    return len(names) == len(sequence.parts) == len(set(names))


def _by_name(sequence: Sequence) -> tuple[Answer, ...]:
    """The values in the order of their names if these follow on in the alphabet (x, y, z), else as they are written."""
    parts = sorted(sequence.parts, key=lambda part: part.left)
    codes = [ord(part.left) if len(part.left) == 1 else -1 for part in parts]
    follow = -1 not in codes and codes == list(range(codes[0], codes[0] + len(codes)))
    return tuple(part.right for part in (parts if follow else sequence.parts))


def _in_order(golds: Items[Answer], answers: Items[Answer]) -> bool:
    return len(golds) == len(answers) and all(map(equal, golds, answers))


def _in_any_order(golds: Items[Answer], answers: Items[Answer]) -> bool:
    left = list(answers)
    for gold in golds:
        position = next((i for i, answer in enumerate(left) if equal(gold, answer)), None)
        if position is None:
            return False
        del left[position]
    return not left


def _scaled(gold: Quantity, answer: Quantity) -> bool:
    if gold.unit == answer.unit:
        return equal_values(gold.value, answer.value)
    return equal_values(_times(gold.value, gold.unit.factor), _times(answer.value, answer.unit.factor))


def _times(value: Value, factor: Fraction) -> Value:
    if value.numeral:
        product = value.numeral.value * factor
        return Value(
            f"{product.numerator}/{product.denominator}"
            if product >= 0
            else f"-{-product.numerator}/{product.denominator}"
        )
    return Value(rf"({value.text}) \cdot \frac{{{factor.numerator}}}{{{factor.denominator}}}")


def _only_case_differs(gold: str, answer: str) -> bool:
    """Yes, yes and YES are one word. Aa, AA and aa are not, nor are AaBb and AABB."""
    if gold.casefold() != answer.casefold() or len(set(gold.casefold())) == 1:
        return False
    return all(word.islower() or word.isupper() or word.istitle() for word in (gold, answer))
