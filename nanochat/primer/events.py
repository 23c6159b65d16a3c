"""Stories made of single events, each a sentence with its own questions: who did what where."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from nanochat.primer import world
from nanochat.primer.names import invented_name, is_in, open_thing, two_people
from nanochat.primer.question import Split
from nanochat.primer.world import a, capitalized, plural, words

StoryQuestion = tuple[str, str, str, tuple[str, ...]]  # core, answer, key, possible values
MAX_EVENTS = 3

# Past and infinitive of what is done with a thing.
_DEEDS = [pair.split("/") for pair in words("""
    bought/buy lost/lose found/find saw/see made/make broke/break painted/paint hid/hide
    forgot/forget
    carried/carry cleaned/clean sold/sell stole/steal built/build opened/open washed/wash
    dropped/drop
    got/get took/take left/leave wanted/want used/use fixed/fix brought/bring liked/like
    wrapped/wrap
    won/win drew/draw borrowed/borrow kept/keep threw/throw held/hold needed/need
""")]  # fmt: skip
_MEALS = [pair.split("/") for pair in words("""
    ate/eat cooked/cook baked/bake bought/buy made/make tasted/taste wanted/want
""")]  # fmt: skip
_FOOD = words("""
    cake pizza bread soup cheese salad rice pie pasta honey chocolate pancakes sandwich omelette
    stew porridge butter fish
""")  # fmt: skip
_ANIMALS = words(
    "dog cat bird horse rabbit hen cow mouse parrot duck goat frog fox hamster pony fish puppy"
)
_PLACES = (
    *(f"in {spot}" for spot in world.SPOTS),
    *words("at_home at_school at_work outside upstairs"),
    *(f"{at} the {place}" for at, places in {
        "in": "forest city village zoo lake street field bedroom hotel hospital library car",
        "at": "beach station airport river harbour party shop farm circus bakery pool",
        "on": "table roof hill bus train boat bench shelf beach floor bridge mountain",
        "under": "table bed tree bridge bench sofa chair",
        "behind": "house school tree barn door shed",
        "near": "river lake church tower mill", "next to": "door bed oven window lamp",
    }.items() for place in places.split()),
)  # fmt: skip
_DESTINATIONS = [f"to the {place}" for place in words("""
    beach park market zoo garden kitchen school forest lake shop station museum library barn river
    farm city attic cellar church mill playground cinema harbour
""")]  # fmt: skip
_REASONS = (
    "it rained", "the sun was shining", "the {o} was broken", "{he} had lost the {o}",
    "{he} had a new {o}",
    "nobody came", "it was late", "the day was long", "{he} found the {o}", "the {o} was gone",
)  # fmt: skip
_TIMES = ("", "", "", "", "", "Yesterday ", "Today ", "One day ", "Last week ", "In the morning ",
          "On Monday ", "On Sunday ", "After lunch ", "In the evening ")  # fmt: skip
_INTRODUCTIONS = {
    "he": ("My brother ", "My friend ", "My uncle ", "A boy called ", "A man named ", "My son "),
    "she": (
        "My sister ",
        "My friend ",
        "My aunt ",
        "A girl named ",
        "A woman called ",
        "My mother ",
    ),
}
INTRODUCED_SHARE = 0.08  # of stories whose first person is introduced


@dataclass(frozen=True)
class _Cast:
    """Who and what an event is about."""

    name: str
    he: str
    his: str
    friend: str  # another person of the story
    item: str
    colour: str
    split: Split


def _place(rng: Random) -> str:
    return rng.choice(_PLACES).replace("_", " ")


def _deed(rng: Random, cast: _Cast) -> tuple[str, list[StoryQuestion]]:
    """Somebody does something with a thing, somewhere."""
    past, base = rng.choice(_DEEDS)
    name, item, place = cast.name, cast.item, _place(rng)
    has_colour, has_place = rng.random() < 0.4, rng.random() < 0.7
    thing = a(f"{cast.colour} {item}" if has_colour else item)
    if rng.random() < 0.2:
        thing = f"{cast.his} {cast.colour + ' ' if has_colour else ''}{item}"
    end = f" {place}" if has_place else ""
    questions: list[StoryQuestion] = [
        (f"what did {name} {base}", f"{name} {past} {thing}.", item, ()),
        (f"who {past} the {item}", f"{name} {past} the {item}.", name, (cast.friend,)),
    ]
    if has_place:
        questions.append(
            (f"where did {name} {base} the {item}", f"{name} {past} the {item} {place}.", place, ())
        )
    if has_colour:
        questions.append(
            (
                f"what colour is the {item}",
                f"The {item} is {cast.colour}.",
                cast.colour,
                world.COLOURS,
            )
        )
        questions.append(
            (
                f"what colour was the {item}",
                f"The {item} was {cast.colour}.",
                cast.colour,
                world.COLOURS,
            )
        )
    return f"{name} {past} {thing}{end}", questions


def _put(rng: Random, cast: _Cast) -> tuple[str, list[StoryQuestion]]:
    name, item, place = cast.name, cast.item, _place(rng)
    key = place
    if rng.random() < 0.4:
        key = rng.choice(world.HOLDERS)
        place = rng.choice(("in ", "into ", "behind ", "under ")) + key
    past = rng.choice(("put", "hid", "left", "laid"))
    colour = f"{cast.colour} " if rng.random() < 0.4 else ""
    thing = rng.choice((f"{cast.his} {colour}{item}", f"the {colour}{item}", a(f"{colour}{item}")))
    spot = place.replace("into ", "in ")
    base = {"hid": "hide", "left": "leave", "laid": "lay"}.get(past, past)
    questions: list[StoryQuestion] = [
        (f"where is the {item}", f"The {item} is {spot}.", key, ()),
        (f"where is the {item}", f"The {item} is {spot}.", key, ()),
        (f"where is {name}'s {item}", f"The {item} is {spot}.", key, ()),
        (
            f"who {past} the {item} {place}",
            f"{name} {past} the {item} {place}.",
            name,
            (cast.friend,),
        ),
        (f"what did {name} {base}", f"{name} {past} the {item}.", item, ()),
    ]
    if colour:
        questions.append(
            (
                f"what colour is the {item}",
                f"The {item} is {cast.colour}.",
                cast.colour,
                world.COLOURS,
            )
        )
    return f"{name} {past} {thing} {place}", questions


def _trip(rng: Random, cast: _Cast) -> tuple[str, list[StoryQuestion]]:
    name, place = cast.name, rng.choice(_DESTINATIONS)
    past, base = rng.choice(
        (("went", "go"), ("went", "go"), ("ran", "run"), ("walked", "walk"), ("drove", "drive"))
    )
    spot = place.removeprefix("to ")
    return f"{name} {past} {place}", [
        (f"where did {name} {base}", f"{name} {past} {place}.", spot, ()),
        (f"who {past} {place}", f"{name} {past} {place}.", name, (cast.friend,)),
        (f"where is {name}", f"{name} {past} {place}.", spot, ()),
    ]


def _being(rng: Random, cast: _Cast) -> tuple[str, list[StoryQuestion]]:
    place = _place(rng)
    if rng.random() < 0.5:
        who = rng.choice((f"the {rng.choice(_ANIMALS)}", f"the {cast.item}"))
    else:
        who = cast.name
    past, base = rng.choice(
        (("was", ""), ("sat", "sit"), ("slept", "sleep"), ("stayed", "stay"), ("stood", "stand"))
    )
    where = f"where did {who} {base}" if base else f"where was {who}"
    asker = "who" if who == cast.name else "what"
    questions: list[StoryQuestion] = [
        (where, f"{capitalized(who)} {past} {place}.", place, ()),
        (f"where is {who}", f"{capitalized(who)} is {place}.", place, ()),
        (f"{asker} {past} {place}", f"{capitalized(who)} {past} {place}.", who, ()),
    ]
    return f"{who} {past} {place}", questions


def _having(rng: Random, cast: _Cast) -> tuple[str, list[StoryQuestion]]:
    name, item, colour = cast.name, cast.item, cast.colour
    has = rng.choice(("has", "had"))
    have = "does" if has == "has" else "did"
    thing = a(f"{colour} {item}")
    return f"{name} {has} {thing}", [
        (f"what colour is {name}'s {item}", f"{name}'s {item} is {colour}.", colour, world.COLOURS),
        (f"what {have} {name} have", f"{name} {has} {thing}.", item, ()),
        (f"who {has} the {item}", f"{name} {has} the {item}.", name, (cast.friend,)),
        (f"who {has} {thing}", f"{name} {has} {thing}.", name, (cast.friend,)),
        (f"what colour is the {item}", f"The {item} is {colour}.", colour, world.COLOURS),
    ]


def _pet(rng: Random, cast: _Cast) -> tuple[str, list[StoryQuestion]]:
    animal, name = rng.choice(_ANIMALS), cast.name
    while not is_in(cast.split, called := invented_name(rng)):
        pass
    verb = rng.choice(("called", "called", "named"))
    return f"{name} has {a(animal)} {verb} {called}", [
        (f"what is the {animal} called", f"The {animal} is called {called}.", called, ()),
        (
            f"what is the name of {name}'s {animal}",
            f"{name}'s {animal} is called {called}.",
            called,
            (),
        ),
        (f"who has {a(animal)}", f"{name} has {a(animal)}.", name, (cast.friend,)),
        (f"what pet does {name} have", f"{name} has {a(animal)}.", animal, ()),
    ]


def _gift(rng: Random, cast: _Cast) -> tuple[str, list[StoryQuestion]]:
    name, friend, item = cast.name, cast.friend, cast.item
    past, base = rng.choice(
        (
            ("gave", "give"),
            ("sold", "sell"),
            ("lent", "lend"),
            ("showed", "show"),
            ("brought", "bring"),
        )
    )
    thing = a(item)
    text = (
        f"{name} {past} {thing} to {friend}"
        if rng.random() < 0.5
        else f"{name} {past} {friend} {thing}"
    )
    questions: list[StoryQuestion] = [
        (f"what did {name} {base} {friend}", f"{name} {past} {friend} {thing}.", item, ()),
        (f"who {past} {friend} {thing}", f"{name} {past} {friend} {thing}.", name, ()),
        (f"who got the {item}", f"{friend} got the {item}.", friend, (name,)),
    ]
    if past != "showed":
        questions.append(
            (f"who has the {item} now", f"{friend} has the {item} now.", friend, (name,))
        )
    return text, questions


def _mood(rng: Random, cast: _Cast) -> tuple[str, list[StoryQuestion]]:
    name, mood = cast.name, rng.choice(world.FEELINGS)
    was = rng.choice(("was", "felt"))
    reason = rng.choice(_REASONS).format(o=cast.item, he=cast.he)
    questions: list[StoryQuestion] = [
        (f"how did {name} feel", f"{name} felt {mood}.", mood, world.FEELINGS),
        (f"who {was} {mood}", f"{name} {was} {mood}.", name, (cast.friend,)),
    ]
    if rng.random() < 0.6:
        questions.append(
            (f"why was {name} {mood}", f"{name} was {mood} because {reason}.", reason, ())
        )
        return f"{name} {was} {mood} because {reason}", questions
    return f"{name} {was} {mood}", questions


def _number(rng: Random, cast: _Cast) -> tuple[str, list[StoryQuestion]]:
    name, number, items = cast.name, str(rng.randint(2, 20)), plural(cast.item)
    past, base = rng.choice((*_DEEDS, ["has", "have"]))
    does = "does" if past == "has" else "did"
    return f"{name} {past} {number} {items}", [
        (f"how many {items} {does} {name} {base}", f"{name} {past} {number} {items}.", number, ()),
        (f"what {does} {name} {base}", f"{name} {past} {number} {items}.", items, ()),
        (f"who {past} {number} {items}", f"{name} {past} {number} {items}.", name, (cast.friend,)),
    ]


def _meal(rng: Random, cast: _Cast) -> tuple[str, list[StoryQuestion]]:
    (past, base), food, name = rng.choice(_MEALS), rng.choice(_FOOD), cast.name
    return f"{name} {past} {rng.choice(('the', 'some'))} {food}", [
        (f"what did {name} {base}", f"{name} {past} {food}.", food, ()),
        (f"who {past} the {food}", f"{name} {past} the {food}.", name, (cast.friend,)),
    ]


_EVENTS: tuple[Callable[[Random, _Cast], tuple[str, list[StoryQuestion]]], ...] = (
    _deed, _deed, _put, _put, _trip, _being, _having, _having, _pet, _gift, _mood, _number, _meal,
)  # fmt: skip


def _item(rng: Random, split: Split) -> str:
    if rng.random() < 0.4:
        return rng.choice(world.ITEMS)
    return open_thing(rng, split)


def event_story(rng: Random, split: Split) -> tuple[str, *tuple[StoryQuestion, ...]]:
    """One to three events of two people, and the questions of all events."""
    people = two_people(rng, split)
    text, questions = "", []
    items = [_item(rng, split) for _ in range(MAX_EVENTS)]
    colours, makers = rng.sample(world.COLOURS, MAX_EVENTS), rng.sample(_EVENTS, MAX_EVENTS)
    # The people alternate, so that no question fits two events.
    for i in range(rng.choice((1, 2, 2, 3, 3))):
        (name, he, his), (friend, _, _) = people if i % 2 == 0 else people[::-1]
        cast = _Cast(name, he, his, friend, items[i], colours[i], split)
        sentence, asked = makers[i](rng, cast)
        questions += asked
        start = (
            rng.choice(_TIMES) if i == 0 else rng.choice(("", "", "", "Then ", "Later ", "But "))
        )
        if i == 0 and rng.random() < INTRODUCED_SHARE and sentence.startswith(name):
            start = rng.choice(_INTRODUCTIONS[he])
        sentence = start + sentence if start else capitalized(sentence)
        text += sentence + ". "
    unique = {core: (core, answer, key, values) for core, answer, key, values in questions}
    return text.strip(), *unique.values()
