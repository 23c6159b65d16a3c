"""The tables of the primer world: animals, things, people, places, the calendar.

Texts and questions are made from these tables alone. The order of the rows matters: random draws
index into them, so a row that is inserted changes the text of every seed.
"""

from dataclasses import dataclass
from typing import TypeVar

Row = TypeVar("Row")


def _table(row_type: type[Row], table: str) -> tuple[Row, ...]:
    rows = (line.split("|") for line in table.strip().splitlines())
    return tuple(row_type(*(cell.strip() for cell in row)) for row in rows)


def words(text: str) -> tuple[str, ...]:
    """A list of single words, written as text."""
    return tuple(text.split())


@dataclass(frozen=True)
class Animal:
    """A kind of animal, and what a children's book says about it."""

    name: str
    colour: str
    sound: str  # "yaps"; differs for each animal, so that it identifies one
    home: str
    food: str
    young: str  # "cub", without an article


# From the smallest to the largest: questions about size compare positions in this table.
ANIMALS = _table(Animal, """
ant        | black  | rustles    | an anthill       | crumbs       | larva
ladybird   | red    | whirs      | a rose bush      | greenflies   | grub
bee        | yellow | buzzes     | a hive           | nectar       | larva
butterfly  | orange | flutters   | a flower bed     | sugar water  | caterpillar
snail      | brown  | slurps     | a garden wall    | lettuce      | hatchling
cricket    | green  | chirps     | a hayfield       | dandelions   | nymph
mouse      | grey   | squeaks    | a hole           | cheese       | pup
frog       | green  | croaks     | a pond           | flies        | tadpole
lizard     | green  | hisses     | a sunny rock     | spiders      | hatchling
robin      | red    | sings      | a nest           | worms        | chick
bat        | black  | clicks     | a cave           | moths        | batling
mole       | black  | scrapes    | a tunnel         | grubs        | pup
kingfisher | blue   | whistles   | a river bank     | minnows      | chick
squirrel   | red    | chatters   | a hollow tree    | nuts         | kitten
hedgehog   | brown  | snuffles   | a heap of leaves | beetles      | hoglet
parrot     | green  | talks      | a palm tree      | seeds        | chick
pigeon     | grey   | coos       | a church tower   | peas         | squab
owl        | brown  | hoots      | a barn           | mice         | owlet
crow       | black  | caws       | a tall tree      | corn         | chick
seagull    | white  | screeches  | a cliff          | crabs        | chick
rabbit     | grey   | thumps     | a burrow         | carrots      | bunny
hen        | white  | clucks     | a coop           | grain        | chick
duck       | yellow | quacks     | a lake           | water plants | duckling
tortoise   | green  | creaks     | a shell          | cabbage      | hatchling
cat        | black  | meows      | a basket         | fish         | kitten
otter      | brown  | squeals    | a stream         | eels         | whelp
fox        | orange | yaps       | a den            | berries      | cub
goose      | white  | honks      | a reed bed       | grass        | gosling
beaver     | brown  | splashes   | a lodge          | bark         | kit
badger     | grey   | growls     | a sett           | roots        | cub
peacock    | blue   | screams    | a palace garden  | barley       | peachick
swan       | white  | hums       | an island        | reeds        | cygnet
monkey     | brown  | shrieks    | a jungle         | bananas      | infant
dog        | brown  | barks      | a kennel         | bones        | puppy
goat       | white  | bleats     | a hill farm      | leaves       | kid
sheep      | white  | baas       | a meadow         | clover       | lamb
wolf       | grey   | howls      | a forest         | meat         | cub
penguin    | black  | trumpets   | an ice field     | squid        | chick
pig        | pink   | grunts     | a sty            | potatoes     | piglet
seal       | grey   | yelps      | a rocky bay      | herring      | pup
deer       | brown  | bells      | a glade          | acorns       | fawn
donkey     | grey   | brays      | a paddock        | straw        | foal
lion       | yellow | roars      | a savanna        | zebras       | cub
tiger      | orange | snarls     | a bamboo thicket | buffaloes    | cub
cow        | brown  | moos       | a field          | hay          | calf
horse      | brown  | neighs     | a stable         | oats         | foal
camel      | yellow | groans     | a desert         | thistles     | calf
bear       | black  | rumbles    | a mountain wood  | honey        | cub
giraffe    | yellow | murmurs    | an acacia grove  | twigs        | calf
elephant   | grey   | toots      | a wide plain     | fruit        | calf
whale      | blue   | moans      | the ocean        | krill        | calf
""")  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """A thing with one colour and one kind."""

    name: str
    colour: str
    kind: str


_THINGS = """
fruit: yellow banana, red cherry, purple plum, green pear, yellow lemon, red strawberry
fruit: orange peach, blue blueberry, black blackberry, brown coconut, green gooseberry
fruit: orange apricot
vegetable: orange pumpkin, red tomato, green cucumber, white onion, orange carrot, green pea
vegetable: purple aubergine, red radish, white cauliflower, yellow turnip, green spinach leaf
vegetable: purple beetroot
flower: red rose, white daisy, yellow sunflower, purple violet, blue cornflower, orange marigold
flower: pink carnation, white snowdrop
tool: grey hammer, blue saw, brown spade, green rake, white ladder, red axe, yellow drill
tool: orange broom
vehicle: red fire engine, green tractor, yellow school bus, white milk van, blue sailing boat
vehicle: black old train, orange tram, brown hand cart, grey ice sledge, pink bicycle
piece of clothing: yellow rain coat, purple winter scarf, brown straw hat, grey wool sock
piece of clothing: pink night gown, white silk shirt, black leather boot, blue summer dress
piece of clothing: red bow tie, green apron
instrument: brown violin, red drum, yellow trumpet, black piano, grey flute, orange harp
instrument: white banjo, blue accordion
piece of furniture: green armchair, white cradle, brown wardrobe, black bookshelf
piece of furniture: yellow kitchen table, red piano stool, grey mirror, purple sofa
stone: red ruby, green emerald, blue sapphire, orange amber, white pearl, black coal
stone: purple amethyst, grey flint
sweet: pink raspberry ice, black liquorice, brown toffee, white peppermint, yellow lemon drop
sweet: pink candy floss, green jelly frog
toy: red spinning top, brown teddy bear, white rocking horse, yellow paper plane
toy: blue skipping rope, grey toy robot, purple glove puppet
"""
THINGS = tuple(
    Thing(name, colour, kind)
    for kind, things in (line.split(": ") for line in _THINGS.strip().splitlines())
    for colour, name in (thing.split(maxsplit=1) for thing in things.split(", "))
)


@dataclass(frozen=True)
class Person:
    """Somebody in the world."""

    name: str
    pronoun: str  # he or she
    job: str
    town: str
    pet: str
    dish: str


PEOPLE = _table(Person, """
Mia     | she | baker      | Lakeside    | giraffe    | toast
Oskar   | he  | painter    | Sandbay     | swan       | curry
Lina    | she | nurse      | Millbrook   | hedgehog   | custard
Jonas   | he  | smith      | Greenfield  | seal       | bread
Ruth    | she | clockmaker | Highgate    | bat        | honey cake
Felix   | he  | fisher     | Rosehill    | elephant   | biscuits
Clara   | she | gardener   | Oakham      | mole       | asparagus
Hugo    | he  | miller     | Stonebridge | pigeon     | fish pie
Nora    | she | tailor     | Windmoor    | badger     | soup
Emil    | he  | potter     | Foxhollow   | peacock    | macaroni
Ida     | she | teacher    | Saltmarsh   | tiger      | gingerbread
Viktor  | he  | carpenter  | Ironford    | dog        | trout
Paula   | she | shepherd   | Appleton    | bear       | chestnuts
Bruno   | he  | sailor     | Snowpeak    | lizard     | cheese
Greta   | she | weaver     | Castlebury  | ant        | chowder
Anton   | he  | farmer     | Ferryport   | cat        | popcorn
Selma   | she | pilot      | Honeywell   | duck       | oysters
Kasper  | he  | postman    | Thornwick   | kingfisher | lentils
Amelia  | she | fisher     | Lakeside    | seagull    | roast duck
Theo    | he  | gardener   | Sandbay     | hen        | apple pie
Olga    | she | miller     | Millbrook   | beaver     | porridge
Simon   | he  | tailor     | Greenfield  | sheep      | spinach
Edith   | she | potter     | Highgate    | lion       | pudding
Walter  | he  | teacher    | Rosehill    | whale      | rice
Flora   | she | carpenter  | Oakham      | frog       | jam
Arthur  | he  | shepherd   | Stonebridge | deer       | pancakes
Hilda   | she | sailor     | Windmoor    | crow       | dumplings
Martin  | he  | weaver     | Foxhollow   | cow        | ice cream
Vera    | she | farmer     | Saltmarsh   | ladybird   | mushrooms
Robert  | he  | pilot      | Ironford    | pig        | noodles
Agnes   | she | postman    | Appleton    | owl        | corn
Albert  | he  | librarian  | Snowpeak    | wolf       | sausages
Beate   | she | mayor      | Castlebury  | parrot     | pizza
Boris   | he  | doctor     | Ferryport   | horse      | crackers
Carmen  | she | cook       | Honeywell   | fox        | marzipan
Conrad  | he  | singer     | Thornwick   | goose      | muffins
Doris   | she | teacher    | Lakeside    | cricket    | omelette
Dennis  | he  | carpenter  | Sandbay     | bee        | chips
Esther  | she | shepherd   | Millbrook   | squirrel   | goulash
Edgar   | he  | sailor     | Greenfield  | monkey     | pickles
Frieda  | she | weaver     | Highgate    | camel      | waffles
Fritz   | he  | farmer     | Rosehill    | penguin    | meatballs
Gloria  | she | pilot      | Oakham      | tortoise   | stew
Gustav  | he  | postman    | Stonebridge | mouse      | pretzels
Hanna   | she | librarian  | Windmoor    | goat       | salad
Henry   | he  | mayor      | Foxhollow   | snail      | cream puffs
Irma    | she | doctor     | Saltmarsh   | butterfly  | plum cake
Isaac   | he  | cook       | Ironford    | donkey     | beans
Jette   | she | singer     | Appleton    | otter      | soup
Jakob   | he  | beekeeper  | Snowpeak    | robin      | fish pie
Kirsten | she | baker      | Castlebury  | rabbit     | pancakes
Kurt    | he  | painter    | Ferryport   | ant        | stew
Laura   | she | nurse      | Honeywell   | ladybird   | salad
Ludwig  | he  | smith      | Thornwick   | bee        | noodles
Marta   | she | farmer     | Lakeside    | butterfly  | plum cake
Moritz  | he  | pilot      | Sandbay     | snail      | dumplings
Nelly   | she | postman    | Millbrook   | cricket    | toast
Norbert | he  | librarian  | Greenfield  | mouse      | rice
Ottilie | she | mayor      | Highgate    | frog       | porridge
Olaf    | he  | doctor     | Rosehill    | lizard     | bread
Petra   | she | cook       | Oakham      | robin      | cheese
Philip  | he  | singer     | Stonebridge | bat        | waffles
Rita    | she | beekeeper  | Windmoor    | mole       | apple pie
Ralph   | he  | baker      | Foxhollow   | kingfisher | sausages
Sonja   | she | painter    | Saltmarsh   | squirrel   | pudding
Stefan  | he  | nurse      | Ironford    | hedgehog   | chowder
Thea    | she | smith      | Appleton    | parrot     | jam
Tobias  | he  | clockmaker | Snowpeak    | pigeon     | pizza
Ulrike  | she | fisher     | Castlebury  | owl        | omelette
Ulrich  | he  | gardener   | Ferryport   | crow       | honey cake
Wilma   | she | miller     | Honeywell   | seagull    | mushrooms
Werner  | he  | tailor     | Thornwick   | rabbit     | beans
""")  # fmt: skip


@dataclass(frozen=True)
class Town:
    """A place where people live."""

    name: str
    lies: str  # where it is: "by a lake"
    known_for: str


TOWNS = _table(Town, """
Lakeside    | by a lake       | its swans
Sandbay     | by the sea      | its lighthouse
Millbrook   | on a river      | its water mill
Greenfield  | among meadows   | its summer fair
Highgate    | on a mountain   | its old gate
Rosehill    | on a hill       | its rose gardens
Oakham      | in a forest     | its great oak
Stonebridge | in a valley     | its stone bridge
Windmoor    | on a moor       | its windmills
Foxhollow   | in a hollow     | its night market
Saltmarsh   | on a marsh      | its white herons
Ironford    | beside a mine   | its iron tower
Appleton    | among orchards  | its cider
Snowpeak    | below a glacier | its ski jump
Castlebury  | around a castle | its knights
Ferryport   | at a harbour    | its red ferry
Honeywell   | beside a spring | its sweet water
Thornwick   | behind a hedge  | its maze
""")  # fmt: skip

# Names of no person above, so that stories and chat users never contradict a fact.
GIRLS = words("""
    Anna Bella Cora Daisy Ella Fiona Gina Helen Iris Julia Kate Lucy Mary Nina Polly Rosa Sally Tina
    Wendy Zoe
""")  # fmt: skip
BOYS = words("""
    Adam Ben Carl David Eric Frank George Harry Ivan Jack Kevin Leo Max Noah Otto Peter Sam Tom Will
    Zack
""")  # fmt: skip
CHILDREN = (*GIRLS, *BOYS)

COLOURS = words("red orange yellow green blue purple pink brown black white grey")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("""
    January February March April May June July August September October November December
""")  # fmt: skip
SEASONS = words("spring summer autumn winter")
# December (index 11), January and February are winter.
SEASON_OF_MONTH = {month: SEASONS[(number - 2) % 12 // 3] for number, month in enumerate(MONTHS)}
LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Small things for stories and sums; see `plural`.
ITEMS = words("""
    ball book key cup coin spoon shell bell kite candle ring button marble apple ribbon stone
    feather letter pencil lamp flag brush whistle plate pebble ticket stamp doll map glove nail
    pillow bottle comb needle egg card basin lantern
""")  # fmt: skip
SPOTS = tuple(f"the {spot}" for spot in words("""
    kitchen garden attic barn cellar hall library workshop bathroom yard school park tent shed mill
    market tower office church laundry bakery cabin greenhouse museum
"""))  # fmt: skip
HOLDERS = tuple(f"the {holder}" for holder in words("""
    box basket drawer bag cupboard bucket jar chest pot sack suitcase barrel crate tin hat trunk
"""))  # fmt: skip
FEELINGS = words("""
    happy tired proud sad angry hungry curious calm surprised cheerful worried thankful
""")  # fmt: skip
WEATHERS = words("sunny rainy windy snowy foggy cloudy")


def a(noun: str) -> str:
    """A noun with its article: a cat, an owl; one that has an article keeps it."""
    if noun.startswith(("a ", "an ", "the ")):
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def columns(row: object) -> dict[str, str]:
    """The columns of a row for str.format, each also with an article: {job} and {a_job}."""
    return {**vars(row), **{f"a_{name}": a(value) for name, value in vars(row).items()}}


def capitalized(text: str) -> str:
    """The text with its first letter in upper case; str.capitalize would lower the others."""
    return text[0].upper() + text[1:]


_IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "sheep": "sheep",
    "deer": "deer",
    "wolf": "wolves",
    "postman": "postmen",
}


def plural(noun: str) -> str:
    """The plural of an animal, a thing, a job or a kind."""
    if " of " in noun:  # a piece of clothing
        return noun.replace(" of ", "s of ", 1)
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("sh", "ch", "x", "s")) else f"{noun}s"


_TERMS = {
    *(word for animal in ANIMALS for word in (animal.name, animal.food)),
    *(word for person in PEOPLE for word in (person.job, person.dish)),
    *(thing.name for thing in THINGS),
    *(name.lower() for name in (*DAYS, *MONTHS)),
} | {*ITEMS, *COLOURS, *SEASONS, *WEATHERS}
# Words of the world that can be spelled, in lower case; sorted, since sets have no stable order.
WORDS = tuple(sorted(term for term in _TERMS if " " not in term))
