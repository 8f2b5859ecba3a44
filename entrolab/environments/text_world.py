"""A text world: rooms, things, a goal that may lie in a locked chest, a single reward at the end.

  goal coin to attic | hall exits north east sees chest lamp >
  go north          attic exits south sees key >
  take key          done >
  open chest        chest holds coin >        (in its room, with the key in hand)
  take coin, drop coin                        the goal's room ends the episode with reward 1

After an action that is impossible or not understood the observation is `nothing happens >`.
"""

import collections
import dataclasses
from collections.abc import Iterator

import numpy as np

from entrolab.environments import Spoken
from entrolab.tasks.task import Example, Generated, Step, drawn, held_out, operands

ROOMS = ("attic", "cellar", "garden", "hall", "kitchen", "library", "porch", "studio")
THINGS = ("apple", "book", "coin", "cup", "flute", "lamp", "map", "rope")
WAYS = {"north": (0, -1), "east": (1, 0), "south": (0, 1), "west": (-1, 0)}
BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}
HAND, CHEST = "hand", "chest"  # places besides rooms
NOTHING = "nothing happens >"


@dataclasses.dataclass(frozen=True)
class Layout:
  """The parts of a world that no action changes."""
  exits: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]  # (room, ((way, room), ...)) pairs
  goal: str  # a thing
  target: str  # the room that the goal must be brought to
  chest: str  # the chest's room; empty without a chest

  def ways(self, room: str) -> dict[str, str]:
    """The exits of a room: way -> room."""
    return dict(dict(self.exits)[room])

  def route(self, start: str, end: str) -> str:
    """The first way of a shortest path. Raises ValueError where there is none."""
    seen = {start}
    queue = collections.deque([(start, "")])  # room, the first way of the path to it
    while queue:
      room, first = queue.popleft()
      if room == end:
        return first
      for way, following in self.ways(room).items():
        if following not in seen:
          seen.add(following)
          queue.append((following, first or way))
    raise ValueError(f"no way from {start} to {end} in {self!r}")


@dataclasses.dataclass(frozen=True)
class State:
  """A world at some point of an episode."""
  layout: Layout  # what no action changes
  here: str  # the room of the agent
  places: tuple[tuple[str, str], ...]  # (thing, room or HAND or CHEST) pairs
  open: bool = False  # whether the chest is

  def place(self, thing: str) -> str:
    """A room, HAND or CHEST; the empty string for a thing that this world does not have."""
    return dict(self.places).get(thing, "")

  def put(self, thing: str, place: str) -> "State":
    """The state with a thing moved to a place."""
    moved = tuple((t, place if t == thing else p) for t, p in self.places)
    return dataclasses.replace(self, places=moved)

  def view(self) -> str:
    """`hall exits north east sees chest lamp >`"""
    sees = [CHEST] if self.layout.chest == self.here else []
    sees += [t for t, p in self.places if p == self.here]
    ways = " ".join(self.layout.ways(self.here))
    return f"{self.here} exits {ways} sees {' '.join(sees) or 'nothing'} >"

  def within_reach(self, thing: str) -> bool:
    """Whether a thing can be taken: it is in this room, or in the open chest of this room."""
    place = self.place(thing)
    return place == self.here or (place == CHEST and self.open and self.layout.chest == self.here)


@dataclasses.dataclass(frozen=True)
class TextWorld(Generated, Spoken):
  """Bring a thing to a room.

  One world in five, by the words of its prompt, is for evaluation. Raises ValueError for sizes out
  of range.
  """
  rooms: int = 6  # on a grid, all connected
  things: int = 3  # besides the key
  locked: float = 0.5  # share of worlds whose goal lies in a chest that the key opens

  def __post_init__(self) -> None:
    if not 2 <= self.rooms <= len(ROOMS) or not 1 <= self.things <= len(THINGS):
      raise ValueError(f"{self!r}: needs 2 to {len(ROOMS)} rooms, 1 to {len(THINGS)} things")

  @property
  def max_observation(self) -> int:
    """Words of a view at most: room exits 4 sees chest key things >."""
    return 1 + 1 + 4 + 1 + 2 + self.things + 1

  @property
  def max_prompt(self) -> int:
    """Words of `goal THING to ROOM |` and a view."""
    return 5 + self.max_observation

  def words(self) -> tuple[str, ...]:
    """Every word of prompts, observations and actions."""
    return (*ROOMS, *THINGS, *WAYS, "goal", "to", "|", "exits", "sees", "nothing", ">", "go",
            "take", "drop", "open", "key", CHEST, "holds", "done", "happens")

  def draw(self, part: int, seed: int, index: int) -> Example:
    """A world of the part, by its opening view and its goal."""
    state = self._world(seed, part, index)
    answer = f"{state.layout.goal} in {state.layout.target}"
    return Example(index, self._opening(state), answer, f"text_world/{seed}/{part}")

  def _world(self, seed: int, part: int, index: int) -> State:
    """The world of an example."""
    rng = np.random.default_rng([seed, part, index, 71])

    def wanted(state: State) -> bool:
      # worlds that begin alike are of one part, so that training sees no prompt of evaluation
      return held_out(operands(self._opening(state)), 5) == bool(part)

    return drawn(lambda: self._random(rng), wanted, repr(self))

  def _random(self, rng: np.random.Generator) -> State:
    """A random world of either part."""
    pick = lambda names, n: [str(x) for x in rng.choice(names, n, replace=False)]
    names = pick(ROOMS, self.rooms)
    exits = {name: dict(ways) for name, ways in _grid(rng, names)}
    goal, *others = pick(THINGS, self.things)
    target = names[rng.integers(self.rooms)]
    elsewhere = [n for n in names if n != target]
    chest = str(rng.choice(elsewhere)) if rng.random() < self.locked else ""
    places = {goal: CHEST if chest else str(rng.choice(elsewhere))}
    places |= {other: str(rng.choice(names)) for other in others}
    if chest:
      places["key"] = str(rng.choice([n for n in names if n != chest]))
    layout = Layout(tuple((n, tuple(sorted(w.items()))) for n, w in exits.items()), goal, target,
                    chest)
    return State(layout, names[rng.integers(self.rooms)], tuple(sorted(places.items())))

  def _opening(self, state: State) -> str:
    return f"goal {state.layout.goal} to {state.layout.target} | {state.view()}"

  def reset(self, example: Example) -> tuple[State, str]:
    """The world that the example's source and id name."""
    seed, part = (int(x) for x in example.source.split("/")[1:])
    state = self._world(seed, part, example.id)
    return state, self._opening(state)

  def step(self, state: State, text: str) -> Step:
    """An action: go WAY, take THING, drop THING or open chest."""
    verb, _, name = text.strip().partition(" ")
    layout = state.layout
    if verb == "go" and name in layout.ways(state.here):
      state = dataclasses.replace(state, here=layout.ways(state.here)[name])
      return state, state.view(), 0.0, False
    if verb == "take" and state.within_reach(name):
      return state.put(name, HAND), "done >", 0.0, False
    if verb == "drop" and state.place(name) == HAND:
      state = state.put(name, state.here)
      solved = name == layout.goal and state.here == layout.target
      return state, "done >", float(solved), solved
    can_open = layout.chest == state.here and not state.open and state.place("key") == HAND
    if verb == "open" and name == CHEST and can_open:
      inside = " ".join(thing for thing, place in state.places if place == CHEST)
      return dataclasses.replace(state, open=True), f"{CHEST} holds {inside} >", 0.0, False
    return state, NOTHING, 0.0, False

  def expert(self, state: State, rng: np.random.Generator | None = None) -> str:
    """The next action of a shortest solution; it knows the whole world."""
    del rng
    layout = state.layout
    goal = layout.goal
    place = state.place(goal)
    # where the next useful action is possible, and that action
    if place == HAND:
      room, action = layout.target, f"drop {goal}"
    elif place != CHEST:
      room, action = place, f"take {goal}"
    elif state.open:
      room, action = layout.chest, f"take {goal}"
    elif state.place("key") == HAND:
      room, action = layout.chest, "open chest"
    else:
      room, action = state.place("key"), "take key"
    return action if room == state.here else f"go {layout.route(state.here, room)}"


def _grid(rng: np.random.Generator, names: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
  """(room, exits) pairs of rooms that are grown cell by cell on a grid.

  Every room has a door to the room that it grew from, and with probability 1/2 to each other
  neighbour.
  """
  cells = {(0, 0): names[0]}
  doors: dict[str, dict[str, str]] = {name: {} for name in names}

  def door(a: str, way: str, b: str) -> None:
    doors[a][way] = b
    doors[b][BACK[way]] = a

  for name in names[1:]:
    free = [(at, way) for at in cells for way in WAYS if _next(at, way) not in cells]
    at, way = free[rng.integers(len(free))]
    cells[_next(at, way)] = name
    door(cells[at], way, name)
    for other in WAYS:
      neighbour = cells.get(_next(_next(at, way), other))
      if neighbour and other not in doors[name] and rng.random() < 0.5:
        door(name, other, neighbour)
  yield from doors.items()


def _next(at: tuple[int, int], way: str) -> tuple[int, int]:
  """The neighbouring cell."""
  return at[0] + WAYS[way][0], at[1] + WAYS[way][1]
