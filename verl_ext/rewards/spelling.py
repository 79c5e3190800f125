r"""One spelling for what an answer may be written as: spacing, fonts, sizes, plain-text notation, decoration.

`canonical` is a list of substitutions, each with one reading of what it replaces. Fonts become `\text{...}`, which
`unwrapped` takes off where only the words count.
"""

from __future__ import annotations

import re

from verl_ext.rewards.characters import to_latex
from verl_ext.rewards.numerals import join_thousands

_END = r"(?![A-Za-z])"
_PLAIN = r"(?<![\\A-Za-z])"
_TOKEN = r"(\d|[A-Za-z]|\\[A-Za-z]+)"
_GREEK = "alpha beta gamma delta epsilon theta lambda sigma omega phi psi rho tau"
_FUNCTIONS = "arcsin arccos arctan sinh cosh tanh sin cos tan cot csc log ln exp"
_STYLES = (
    "displaystyle|textstyle|limits|nolimits|rm|bf|it"
    "|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge"
)
_SAME = {
    "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne", "varnothing": "emptyset", "rightarrow": "to",
    "longrightarrow": "to", "implies": "Rightarrow", "Longrightarrow": "Rightarrow", "dots": "ldots", "cdots": "ldots",
    "dotsc": "ldots", "lbrace": "{", "rbrace": "}", "lvert": "|", "rvert": "|", "vert": "|", "varepsilon": "epsilon",
    "varphi": "phi", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac",
    "simeq": "approx", "Leftrightarrow": "iff", "colon": ":", "lbrack": "[", "rbrack": "]",
}  # fmt: skip


def _same(match: re.Match) -> str:
    name = _SAME[match[1]]
    return f"\\{name} " if name.isalpha() else name if name in ":|[]" else f"\\{name}"


_TEX = (
    (r"^\s*(\*{1,3}|__|`{1,3})(?=[^\s*_`])(.*)(?<=[^\s*_`])\1\s*$", r"\2"),  # Markdown
    (r"(?<!\\)(?:\$|\\[()\[\]])", " "),  # formula delimiters
    (rf"\\(?:left|right|[bB]igg?[lrm]?){_END}\s*\.?", ""),
    (r"\\!\s*", ""),
    (rf"(?<!\\)(?:\\[,;:> ]|~|\\(?:q?quad|thinspace|enspace|{_STYLES}){_END})", " "),
    (r"\\(?:(?:text)?color|tag\*?|label)\s*\{[^{}]*\}", " "),
    (r"\\[hv]space\*?\s*\{[^{}]*\}", " "),
    (r"\{\s*,\s*\}", ","),
    (
        r"\\(?:text(?:bf|it|rm|normal|tt|sf)?|math(?:rm|bf|it|sf|tt)|[fmh]box|boldsymbol|bm|emph|underline)\s*\{",
        r"\\text{",
    ),
    (r"\\text(?=\{[^{}]*\{)", ""),  # around a formula
    (rf"\\operatorname\*?\s*\{{\s*({_FUNCTIONS.replace(' ', '|')})\s*\}}", r"\\\1 "),
    (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"),
    (rf"\\({'|'.join(_SAME)}){_END}", _same),
    (r"\s*\^\s*\{?\s*((?:\\prime\s*)+)\}?", lambda match: "'" * match[1].count("prime")),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree" + _END, r"^{\\circ}"),
)
_NOTATION = (
    (r"\*\*", "^"),
    (r"(?<![\w.}])(\d{1,3})((?:_\d{3})+)(?![\w{])", lambda match: match[1] + match[2].replace("_", "")),  # 1_000
    (r"(?<=[\d\s}])(mm|cm|dm|km|ft|yd)([23])(?![\w^])", r"\1^{\2}"),  # 10 cm2
    (r"(?i:\bper cent\b)", "percent"),
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (r"!=|=/=", r"\\ne "),
    (r":=|==", "="),
    (r"=>", r"\\Rightarrow "),
    (r"->", r"\\to "),
    (r"~=", r"\\approx "),
    (rf"{_PLAIN}(?:infinity|infty|inf|oo){_END}", r"\\infty "),
    (rf"{_PLAIN}(pi|{_GREEK.replace(' ', '|')}){_END}", r"\\\1 "),
    (rf"{_PLAIN}sqrt\s*(?=[({{\d])", r"\\sqrt "),
    (rf"{_PLAIN}({_FUNCTIONS.replace(' ', '|')})(?=\s*[({{\d\\^_]|\s+[a-z]{_END})", r"\\\1 "),
)
_ARGUMENTS = (
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(\\sqrt\s*(?:\[[^\[\]]*\])?)\s*(\d+(?:\.\d+)?|[A-Za-z]|\\[A-Za-z]+)", r"\1{\2}"),
    (rf"\\frac\s*{_TOKEN}\s*{_TOKEN}", r"\\frac{\1}{\2}"),
    (rf"\\frac\s*{_TOKEN}\s*(?=\{{)", r"\\frac{\1}"),
    (rf"\\frac\s*(\{{[^{{}}]*\}})\s*{_TOKEN}", r"\\frac\1{\2}"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
    (r"\^\s*([+-]?\d+)", r"^{\1}"),
    (r"_\s*(\d+)", r"_{\1}"),
)
_PERIOD = r"\\(?:overline|bar|dot)\s*"
_REPEATING = r" ?(?:\\text ?\{)? ?\(? ?(?:repeating|recurring) ?\)? ?\}?"
_NUMBERS = (
    (r"\s+", " "),
    (rf"(\.\d*)\{{\s*({_PERIOD}\{{?\d+\}}?)\s*\}}", r"\1\2"),  # 0.{\overline{3}}
    (r"(\.\d*)\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", r"\1\\overline{\2\3\4}"),  # \dot{1}4285\dot{7}
    (rf"(\.\d*){_PERIOD}(\d)", r"\1\\overline{\2}"),
    (rf"\.(\d)\1*{_REPEATING}", r".\\overline{\1}"),  # 0.3 repeating
    (rf"(\.\d+){_REPEATING}", r"\1\\ldots "),  # 0.16 repeating: the 6, or 16
    (r"\.(\d*?)(\d)\2{2,}\s*(?:\.{3}|\\ldots(?![A-Za-z]))", r".\1\\overline{\2}"),  # 0.1666...
    (r"\\log\s*_\s*(?:e(?![A-Za-z])|\{\s*e\s*\})", r"\\ln "),
    (r"(?<![\d.])\.(?=\d)", "0."),
    (r"(?<=\d)\.(?=\s*[/)*+,])", ""),  # of -1./3
    (r"\s+", " "),
)
_ABOUT = r"(?:approximately|approx\.?|about|roughly|around|equals)"
_LABEL = r"(?:the )?(?:final |correct )?(?:answer|ans|result|solution)(?: is(?: option)?)?"
_ENDS = (
    (rf"^(?:\\text\s*\{{{_LABEL}\s*[:=]?\s*\}}|{_LABEL}(?:\s*[:=]| ))\s*(?=[^\s,;.])", ""),
    (r"(?:[\s.,;:]|\\\\)+$", ""),
    (r"(?<=\d) ?\^? ?\{? ?(?:\\text ?\{)? ?(?:st|nd|rd|th) ?\}?\}?$", ""),  # 5th
    (rf"^(?:\\text\s*\{{\s*{_ABOUT}\s*\}}|{_ABOUT}{_END})\s*(?=[-+\d\\.])", ""),
    (r"\s*(?:\(\s*approx(?:\.|imately)?\s*\)|\\text\s*\{[\s(]*approx(?:\.|imately)?[\s)]*\})$", ""),
    (r"^(''|[\"'])([^'\"]*)\1$", r"\2"),
    (rf"^(?:\s|[=:]|\\(?:therefore|because|Rightarrow|approx|sim|to|iff|cong|equiv|colon){_END})+", ""),
    (
        r"(?<=\S)[\s,]*(?:\\text\s*\{[\s,]*for (?:all|any|every|each)|(?<!\w)for (?:all|any|every|each)\b|\\forall).*$",
        "",
    ),
)


def _compiled(rules: tuple, flags: re.RegexFlag = re.DOTALL) -> tuple:
    return tuple((re.compile(pattern, flags), replacement) for pattern, replacement in rules)


_OVER_ESCAPED = re.compile(r"\\\\(?=[A-Za-z])")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_RULES = (*_compiled(_TEX), *_compiled(_NOTATION), *_compiled(_ARGUMENTS), *_compiled(_NUMBERS))
_END_RULES = _compiled(_ENDS, re.DOTALL | re.IGNORECASE)


def canonical(answer: str) -> str:
    """`answer`, Unicode or LaTeX or plain, in one spelling; linear in its length."""
    text = to_latex(answer)
    if "\\begin" not in text:
        text = _OVER_ESCAPED.sub(r"\\", text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = text.strip()
    for pattern, replacement in _END_RULES:
        text = pattern.sub(replacement, text)
    return text.strip()


def unwrapped(text: str) -> str:
    r"""`text` without `\text{...}` around its words."""
    return " ".join(_TEXT.sub(r" \1 ", text).split())


def compact(text: str) -> str:
    """`text` without the blanks that separate nothing: those beside anything but letters and digits."""
    return re.sub(r" (?=\W)|(?<=\W) ", "", unwrapped(text))


def without_thousands(text: str) -> str:
    r"""`text` with thousands joined outside brackets. Inside, (1,234) is a pair, and \{1,000, 2,000\} has two numbers."""
    parts = re.split(r"(\((?:[^()]*)\)|\\\{[^{}]*\\\}|\[[^\[\]()]*[\])])", text)
    return "".join(
        part if i % 2 and not re.search(r"[,;] ", part) else join_thousands(part) for i, part in enumerate(parts)
    )
