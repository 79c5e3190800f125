r"""Units of measurement: 3 hours 20 minutes is 200 minutes, 10 minutes is not 10 hours, and 10 is either of them.

A unit counts where both answers have one. Pure functions over canonical text (see spelling.py).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

_MEASURES = """
second: second s sec 秒 1 | minute min 分 分钟 60 | hour h hr 小时 時間 3600 | day 天 日 86400 | week 604800
month: month mo 1 | year yr 12 | decade 120 | century centuries 1200
meter: meter metre m 米 1 | millimeter millimetre mm 1/1000 | centimeter centimetre cm 厘米 1/100 | decimeter decimetre dm 1/10
meter: kilometer kilometre km 千米 公里 1000 | inch inches in 0.0254 | foot feet ft 0.3048 | yard yd 0.9144 | mile mi 1609.344
meter: micrometer micrometre 1/1000000 | nanometer nanometre nm 1/1000000000
gram: gram g 克 1 | kilogram kg 千克 公斤 1000 | milligram mg 1/1000 | tonne 1000000
gram: pound lb 453.59237 | ounce oz 28.349523125
liter: liter litre l L 1 | milliliter millilitre ml mL 1/1000
gallon: gallon gal 1 | quart 1/4 | pint 1/8 | cup 1/16
dollar: dollar $ USD 美元 1 | cent ¢ 1/100
euro: euro € EUR 1
sterling: £ GBP 1
rupee: ₹ rupee Rs INR 1
yuan: 元 yuan RMB 1
yen: 円 yen JPY 1
degree: degree 度 1
radian: radian rad 1
celsius: °C celsius 1
fahrenheit: °F fahrenheit 1
kelvin: kelvin K 1
percent: % percent percentage pct 1
: hundred 100 | thousand 1000 | million 1000000 | billion 1000000000 | trillion 1000000000000 | dozen 12
newton: newton N 1
joule: joule J 1 | kilojoule kJ 1000
watt: watt W 1 | kilowatt kW 1000
volt: volt V 1
ampere: ampere amp A 1
ohm: ohm 1
hertz: hertz Hz 1
pascal: pascal Pa 1
mole: mole mol 1
coulomb: coulomb C 1
farad: farad F 1
"""
_NO_UNIT = frozenset(("unit", "number", "value", "total", "point", "way", "time"))  # says what is counted at most
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_AFTERWARDS = {"squared": 2, "cubed": 3}
_SPELLINGS = ((re.compile(r"\\text\s*\{([^{}]*)\}"), r" \1 "), (re.compile(r"\^?\{?\\circ\}?\s*([CF])\b"), r" °\1 "))
_DEGREE = re.compile(r"\^?\{?\\circ\}?")
_MPH = {"mph": "mile per hour", "kph": "kilometer per hour", "kmh": "kilometer per hour", "rpm": "turn per minute"}
_TOKEN = re.compile(r"/|\^\{?(-?\d)\}?|\\?%|\\?\$|[^\W\d_]+|°[CF]|[€£₹¢]")


@dataclass(frozen=True)
class Unit:
    """A product of base units.

    Attributes:
        factor: its size in base units.
        powers: (base unit, exponent), sorted by name; none for "million" and "units".
        multiplier: what the words in it that are numbers come to: 1/100 for "percent", 1000000 for "million dollars".
    """

    factor: Fraction
    powers: tuple[tuple[str, int], ...]
    multiplier: Fraction = Fraction(1)

    @property
    def unnamed(self) -> bool:
        """Whether it says no more than "units"."""
        return self.factor == 1 and not self.powers


def _measures() -> dict[str, tuple[Fraction, str]]:
    """Name of each unit -> (its size in base units, the base unit)."""
    table = {}
    for line in _MEASURES.strip().splitlines():
        base, _, entries = line.partition(":")
        for *names, size in map(str.split, entries.split("|")):
            table |= dict.fromkeys(names, (Fraction(size), base))
    return table


_TABLE = _measures()
LETTERS = frozenset(name for name in _TABLE if len(name) == 1 and name.isalpha() and name.isascii())


def is_measure(word: str) -> bool:
    """Whether `word` is a unit of measurement known here, in the singular or plural."""
    return _singular(word) in _TABLE or word in _MPH


@lru_cache(maxsize=1024)
def parse_unit(text: str) -> Unit:
    r"""The unit that `text` names, such as "cm^2", "square centimeters", "\text{miles per hour}" or "^{\circ}".

    Words that are no measure ("apples") are base units of their own.
    """
    for spelling, replacement in _SPELLINGS:
        text = spelling.sub(replacement, text)
    words = _DEGREE.sub(" degree ", text)
    factor, multiplier, powers = Fraction(1), Fraction(1), Counter()
    for name, exponent in _factors(words):
        size, base = _TABLE.get(name, (Fraction(1), name))
        factor *= size**exponent
        powers[base] += exponent
        multiplier *= (size if not base else Fraction(1, 100) if base == "percent" else 1) ** exponent
    known = tuple(sorted((base, exponent) for base, exponent in powers.items() if base and exponent))
    return Unit(factor, known, multiplier)


def _factors(text: str) -> list[tuple[str, int]]:
    """(singular name, exponent) of every unit in a product such as "square miles per hour"."""
    found: list[tuple[str, int]] = []
    sign, power = 1, 1
    for match in _TOKEN.finditer(" ".join(_MPH.get(word, word) for word in text.split())):
        word = match[0].replace("\\", "")
        if word == "/" or word == "per":
            sign = -1
        elif word in _POWERS:
            power = _POWERS[word]
        elif (match[1] or word in _AFTERWARDS) and found:
            name, before = found[-1]
            found[-1] = (name, before * int(match[1] or _AFTERWARDS[word]))
        elif (name := _singular(word)) not in _NO_UNIT and not match[1] and word not in ("of", "a", "an", "the"):
            found.append((name, sign * power))
            power = 1
    return found


def _singular(word: str) -> str:
    if word in _TABLE:
        return word
    lower = word.lower()
    for ending in ("", "s", "es"):
        stem = lower.removesuffix(ending) if ending else lower
        if lower.endswith(ending) and stem in _TABLE and len(stem) > 1:
            return stem
    return lower.removesuffix("s") if len(lower) > 3 and not lower.endswith("ss") else lower
