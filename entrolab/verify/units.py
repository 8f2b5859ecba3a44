r"""What stands behind a number: units of measure, per cent, degrees, halves of the day, words.

A missing unit may stand for the asked one; a different one is another quantity. Units of one
dimension are converted exactly: 36 km/h is 10 m/s, 2 hours are 120 minutes. Words that are no unit
of measure differ unless one side says all that the other says: "different ways" is "ways", but wins
are no losses.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from fractions import Fraction

Dimension = tuple[tuple[str, int], ...]  # base units with their exponents, in order


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
  """What stands behind a number."""
  dimension: Dimension = ()  # of the units of measure
  factor: Fraction = Fraction(1)  # the unit of measure in base units
  scale: Fraction = Fraction(1)  # of words such as million: it belongs to the number
  words: frozenset[str] = frozenset()  # the other words


NONE = Unit()

SCALES = {"hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7,
          "billion": 10**9, "trillion": 10**12, "quadrillion": 10**15, "dozen": 12}

# A line a unit: its factor and base units | the symbol and other names | prefixes of the symbol.
# Long names of a unit with prefixes take them as well: kilometer, milliliters.
_UNITS = """
1 m | m meter metre | k c m d µ n p
1/1000 kg | g gram gramme | k m µ
1 s | s second sec | m µ n p
1 A | A ampere amp | m µ k
1 K | K kelvin | m
1 mol | mol mole | m k
1 s^-1 | Hz hertz | k M G T
1 kg m s^-2 | N newton | k M
1 kg m^-1 s^-2 | Pa pascal | k M h
1 kg m^2 s^-2 | J joule | k m M G
1 kg m^2 s^-3 | W watt | k m µ M G T
1 A s | C coulomb | m µ
1 kg m^2 s^-3 A^-1 | V volt | k m µ M
1 kg m^2 s^-3 A^-2 | Ω ohm | k M
1 kg s^-2 A^-1 | T tesla | m
1/1000 m^3 | L liter litre l ml=1/1000 dl=1/10 cl=1/100 | k c m d µ
1 eV | eV electronvolt | k M G T
1 bit | bit | k M G
8 bit | byte | k M G
1 pc | parsec pc | k M
127/5000 m | in inch inches |
381/1250 m | ft foot feet |
1143/1250 m | yd yard |
201168/125 m | mi mile |
1397/3125 m s^-1 | mph |
45359237/100000000 kg | lb pound lbs |
45359237/1600000000 kg | oz ounce |
1000 kg | tonne |
1 ton | ton |
60 s | min minute mins |
3600 s | h hour hr hrs |
86400 s | day |
604800 s | week wk |
1 month | month |
12 month | year yr yrs |
1200 month | century centuries |
1 acre | acre |
1 gallon | gallon gal |
1/4 gallon | quart qt |
1/8 gallon | pint |
1/16 gallon | cup |
1 dollar | dollar $ usd buck |
1/100 dollar | cent ¢ penny pennies |
1 euro | euro € eur |
1 £ | £ |
1 yen | yen ¥ |
1 rupee | rupee |
1 ° | ° degree deg |
1/60 ° | arcmin arcminute |
1/3600 ° | arcsec arcsecond |
1 °C | °C celsius |
1 °F | °F fahrenheit |
1 % | % percent pct |
1 a.m. | a.m. am a.m |
1 p.m. | p.m. pm p.m |
"""
_PREFIXES = {"k": (3, "kilo"), "c": (-2, "centi"), "m": (-3, "milli"), "d": (-1, "deci"),
             "µ": (-6, "micro"), "n": (-9, "nano"), "p": (-12, "pico"), "M": (6, "mega"),
             "G": (9, "giga"), "T": (12, "tera"), "h": (2, "hecto")}


def _names() -> dict[str, tuple[Fraction, dict[str, int]]]:
  """All names of units with (factor, base units)."""
  table = {}
  for line in _UNITS.split("\n")[1:-1]:
    size, names, prefixes = (part.split() for part in line.split("|"))
    factor = Fraction(size[0])
    base = {name: int(power or "1") for name, _, power in (x.partition("^") for x in size[1:])}
    for name in names:
      name, _, part = name.partition("=")
      table[name] = (factor * Fraction(part or "1"), base)
      for prefix in prefixes:
        power, long = _PREFIXES[prefix]
        if name == names[0] or len(name) > 3:
          table[(prefix if name == names[0] else long) + name] = (
              factor * Fraction(10) ** power, base)
  return table


_TABLE = _names()
_GENERIC = frozenset(("unit", "units"))  # no unit in particular
_IGNORED = frozenset("the a an of in is are was were be about approximately exactly total each "
                     "there at by for and all it its".split())
_OPPOSED = frozenset("not no non never neither un".split())
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_RAISED = {"squared": 2, "cubed": 3}
_TOKEN = re.compile(r"°[CF]?|[$€£¥%¢]|[ap]\.\s?m\b\.?|[A-Za-zµΩ']+|\^\s?\{?\s?(-?\d)\s?\}?|[*/()]"
                    r"|\d+|\S")


def _known(word: str) -> tuple[Fraction, dict[str, int]] | None:
  """The unit of measure that a word names, in the singular or plural."""
  for name in (word, word.lower() if len(word) > 1 else word):
    for form in (name, name[:-1] if name.endswith("s") and len(name) > 3 else name):
      if form in _TABLE:
        return _TABLE[form]
  return None


def _singular(word: str) -> str:
  """A word without its ending of the plural."""
  word = word.lower().strip("'")
  if word.endswith(("sses", "xes", "ches", "shes")):
    return word[:-2]
  if word.endswith("ies") and len(word) > 4:
    return word[:-3] + "y"
  return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def _flat(text: str) -> str:
  """The text of a unit without LaTeX."""
  text = re.sub(r"\^\s?\\circ", "°", text)
  text = re.sub(r"\\frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}", r"\1/\2", re.sub(
      r"\\text\s?\{((?:[^{}]|\{[^{}]*\})*)\}", r" \1 ", text))
  text = re.sub(r"\\(?:cdot|times)(?![A-Za-z])", "*", text)
  text = text.replace(r"\mu", "µ").replace(r"\Omega", "Ω").replace("μ", "µ").replace("\\", " ")
  return re.sub(r"° ?([CF])(?![A-Za-z])", r"°\1", re.sub(r"[{}~]|\^(?=°)", " ", re.sub(
      r"\^\s?\{\s?(-?\d)\s?\}", r"^\1", text)))


class _Reader:
  """Reads the words of a unit from left to right."""

  def __init__(self) -> None:
    self.factor = Fraction(1)
    self.scale = Fraction(1)
    self.base: dict[str, int] = {}
    self.words: set[str] = set()
    self.side = 1  # -1 behind a slash or "per"
    self.power = 1  # of the next unit: square, cubic
    self.last: tuple[Fraction, dict[str, int], int] | None = None  # the unit read last

  def raise_last(self, power: int) -> None:
    """Gives the last unit a power: cm^2, cm squared."""
    if self.last is None:
      return
    factor, base, side = self.last
    self.apply(factor, base, side * (power - 1))

  def apply(self, factor: Fraction, base: dict[str, int], power: int) -> None:
    """Multiplies by a unit to a power."""
    self.factor *= factor ** power
    for name, exponent in base.items():
      self.base[name] = self.base.get(name, 0) + exponent * power

  def word(self, word: str) -> None:
    """Reads a word."""
    lower = word.lower()
    singular = _singular(lower)
    if singular in SCALES and not self.base and not self.words:
      self.scale *= SCALES[singular]
    elif lower == "per":
      self.side = -1
    elif lower in _POWERS:
      self.power = _POWERS[lower]
    elif lower in _RAISED:
      self.raise_last(_RAISED[lower])
    elif (known := _known(word)) is not None and not (lower in _IGNORED and self.words):
      factor, base = known
      self.last = factor, base, self.side * self.power
      self.apply(factor, base, self.side * self.power)
      self.power = 1
    elif singular in _GENERIC:
      if self.power != 1:
        self.words.add(f"unit^{self.power}")
      self.power = 1
    elif lower not in _IGNORED:
      self.words.add(singular)


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Unit:
  """The unit that a text behind a number says, in canonical spelling."""
  reader = _Reader()
  for match in _TOKEN.finditer(_flat(text)):
    token = match[0]
    if match[1]:
      reader.raise_last(int(match[1]))
    elif token == "/":
      reader.side = -1
    elif token in "*()":
      continue
    elif re.fullmatch(r"[ap]\.\s?m\.?", token):
      reader.word(token[0] + "m")
    elif token[0].isalpha() or token in "$€£¥%¢" or token[0] == "°":
      reader.word(token)
    elif not token.isspace():
      reader.words.add(token)
  if reader.power != 1:
    reader.words.add(f"unit^{reader.power}")
  dimension = tuple(sorted((name, power) for name, power in reader.base.items() if power))
  return Unit(dimension, reader.factor, reader.scale, frozenset(reader.words))


def ratio(gold: Unit, answer: Unit) -> Fraction | None:
  """How many of gold's units are one of answer's: 1 where either is missing, None where the two
  measure different things."""
  if gold.words and answer.words:
    smaller, larger = sorted((gold.words, answer.words), key=len)
    if not smaller <= larger or (gold.words ^ answer.words) & _OPPOSED:
      return None
  if gold.dimension and answer.dimension:
    return answer.factor / gold.factor if gold.dimension == answer.dimension else None
  if (gold.dimension and answer.words - gold.words) or (answer.dimension
                                                        and gold.words - answer.words):
    return None  # 5 cm is not 5 apples
  return Fraction(1)


# Where a number ends and its unit begins.
_TEXT = r"\\text\s?\{(?:[^{}]|\{[^{}]{0,20}\}){0,200}\}"
_RAISE = r"(?:\s?\^\s?(?:\{\s?-?\d\s?\}|\d))?"
_JOIN = r"(?:\s?(?:/|\\cdot|\*)\s?)?"
_TAIL = re.compile(rf"\s?(?:(?:\^\s?\\circ\s?[CF]?\s?)?(?:/?{_TEXT}{_RAISE}{_JOIN}\s?){{1,8}}"
                   rf"(?:[a-z]{{1,3}}{_RAISE})?|\\frac\s?\{{{_TEXT}{_RAISE}\}}\s?\{{{_TEXT}{_RAISE}\}}"
                   r"|\^\s?\\circ\s?[CF]?|\\%|\\\$|[€£¥¢])\Z")
_PLAIN_TAIL = re.compile(r"(?<=[\d})])( ?)((?:[A-Za-z.']{1,20}|\\\$)(?:\s?\^\s?-?\d(?!\d)"
                         r"|\s?[ */().-]{1,3}[A-Za-z.']{1,20}){0,8}\)?)\s?\Z")
_CURRENCY = re.compile(r"([-+]?)\s?(\\\$|[€£¥])\s?")
_TIGHT = frozenset("km cm kg mm mph lb lbs hr hrs km/h kph cm^2 cm^3 km^2 am pm".split())
_OPERATORS = frozenset("mod choose and or to if when where with".split())


def _plain_unit(gap: str, text: str) -> bool:
  """Whether letters behind a number are a unit and not a product of variables.

  Behind a blank a known unit or a word of three letters is; without a blank only what nobody
  multiplies.
  """
  if not gap:
    return text.lower() in _TIGHT
  words = [word.strip(".'") for word in re.findall(r"[A-Za-z.']+", text)]
  return not _OPERATORS & set(words) and all(
      len(word) > 2 or _known(word) or (len(word) == 2 and word in _IGNORED) or word == "a.m"
      or word == "p.m" for word in words)


def split(text: str, is_number: Callable[[str], bool]) -> tuple[str, Unit]:
  """(the mathematics, the unit behind it or the currency before it) of a canonical text.

  is_number: letters without \\text are a unit only behind what it says is a number.
  """
  unit = ""
  currency = _CURRENCY.match(text)
  if currency:
    text = currency[1] + text[currency.end():]
    unit = currency[2].replace("\\", "")
  for _ in range(3):
    tail = _TAIL.search(text)
    if tail and tail.start() > 0:
      unit = text[tail.start():] + " " + unit
      text = text[:tail.start()].rstrip()
      continue
    plain = _PLAIN_TAIL.search(text)
    if plain and _plain_unit(plain[1], plain[2]) and is_number(text[:plain.start()].strip()):
      unit = plain[2] + " " + unit
      text = text[:plain.start()].rstrip()
      continue
    break
  return text, parse(unit.strip()) if unit.strip() else NONE


def behind(answer: str, after: str) -> str:
  """`answer` with the unit of measure, per cent or scale that the text `after` it begins with."""
  match = re.match(r"\s?((?:\\?%|[A-Za-z/^.]{1,16}\d?)(?:\s[A-Za-z.]{1,16}){0,2})", after)
  words = match[1].split() if match else []
  while words:
    said = " ".join(words).rstrip(".,;")
    unit = parse(said)
    alone = len(said) > 1 or said in "%mgsh"
    if (unit.dimension or unit.scale != 1) and not unit.words and alone and words[0] != "in":
      return rf"{answer}\text{{ {said}}}" if "%" not in said else answer + r"\%"
    words.pop()
  return answer
