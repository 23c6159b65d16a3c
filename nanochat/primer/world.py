"""The tables of the primer world: animals, things, people, places, days.

Everything that can be asked about the world stands here, once.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Animal:
    """A kind of animal; what a first reader says about it."""

    name: str
    colour: str
    sound: str
    home: str
    food: str
    young: str


def _animals(table: str) -> tuple[Animal, ...]:
    rows = (line.split("|") for line in table.strip().splitlines())
    return tuple(Animal(*(cell.strip() for cell in row)) for row in rows)


# From the smallest to the largest: the order answers which of two is bigger.
ANIMALS = _animals("""
ant       | black  | rustles  | an anthill      | crumbs      | larva
bee       | yellow | buzzes   | a hive          | nectar      | grub
butterfly | orange | flutters | a flower bed    | sugar water | caterpillar
snail     | brown  | slurps   | a garden wall   | lettuce     | hatchling
mouse     | grey   | squeaks  | a hole          | cheese      | pup
frog      | green  | croaks   | a pond          | flies       | tadpole
robin     | red    | sings    | a nest          | worms       | chick
bat       | black  | clicks   | a cave          | moths       | batling
squirrel  | red    | chatters | a hollow tree   | nuts        | kitten
hedgehog  | brown  | snuffles | a heap of leaves| beetles     | hoglet
parrot    | green  | talks    | a palm tree     | seeds       | chick
owl       | brown  | hoots    | a barn          | mice        | owlet
crow      | black  | caws     | a tall tree     | corn        | chick
rabbit    | grey   | thumps   | a burrow        | carrots     | bunny
hen       | white  | clucks   | a coop          | grain       | chick
duck      | yellow | quacks   | a lake          | water plants| duckling
cat       | black  | meows    | a basket        | fish        | kitten
fox       | orange | yaps     | a den           | berries     | cub
goose     | white  | honks    | a reed bed      | grass       | gosling
beaver    | brown  | splashes | a lodge         | bark        | kit
dog       | brown  | barks    | a kennel        | bones       | puppy
goat      | white  | bleats   | a hill farm     | leaves      | kid
sheep     | white  | baas     | a meadow        | clover      | lamb
wolf      | grey   | howls    | a forest        | meat        | cub
pig       | pink   | grunts   | a sty           | potatoes    | piglet
seal      | grey   | yelps    | a rocky bay     | herring     | pup
donkey    | grey   | brays    | a paddock       | straw       | foal
lion      | yellow | roars    | a savanna       | zebras      | cub
cow       | brown  | moos     | a field         | hay         | calf
horse     | brown  | neighs   | a stable        | oats        | foal
bear      | black  | growls   | a mountain wood | honey       | cub
elephant  | grey   | trumpets | a wide plain    | fruit       | calf
whale     | blue   | hums     | the ocean       | krill       | calf
""")


@dataclass(frozen=True)
class Thing:
    """A thing with one colour and one kind."""

    name: str
    colour: str
    kind: str


def _things(table: str) -> tuple[Thing, ...]:
    rows = (line.split("|") for line in table.strip().splitlines())
    return tuple(Thing(*(cell.strip() for cell in row)) for row in rows)


THINGS = _things("""
banana      | yellow | fruit
cherry      | red    | fruit
plum        | purple | fruit
pear        | green  | fruit
lemon       | yellow | fruit
strawberry  | red    | fruit
peach       | orange | fruit
pumpkin     | orange | vegetable
tomato      | red    | vegetable
cucumber    | green  | vegetable
onion       | white  | vegetable
carrot      | orange | vegetable
pea         | green  | vegetable
aubergine   | purple | vegetable
hammer      | grey   | tool
saw         | blue   | tool
spade       | brown  | tool
rake        | green  | tool
ladder      | white  | tool
fire engine | red    | vehicle
tractor     | green  | vehicle
school bus  | yellow | vehicle
milk van    | white  | vehicle
sailing boat| blue   | vehicle
old train   | black  | vehicle
rain coat   | yellow | piece of clothing
winter scarf| purple | piece of clothing
straw hat   | brown  | piece of clothing
wool sock   | grey   | piece of clothing
night gown  | pink   | piece of clothing
violin      | brown  | instrument
drum        | red    | instrument
trumpet     | yellow | instrument
piano       | black  | instrument
flute       | grey   | instrument
""")


@dataclass(frozen=True)
class Person:
    """Somebody in the world."""

    name: str
    pronoun: str
    """he or she"""
    job: str
    town: str
    pet: str
    dish: str

    @property
    def possessive(self) -> str:
        """his or her"""
        return "his" if self.pronoun == "he" else "her"


def _people(table: str) -> tuple[Person, ...]:
    rows = (line.split("|") for line in table.strip().splitlines())
    return tuple(Person(*(cell.strip() for cell in row)) for row in rows)


PEOPLE = _people("""
Mia    | she | baker      | Lakeside   | cat      | soup
Oskar  | he  | fisher     | Sandbay    | dog      | fish pie
Lina   | she | teacher    | Millbrook  | rabbit   | pancakes
Jonas  | he  | farmer     | Greenfield | pig      | stew
Ruth   | she | doctor     | Highgate   | parrot   | salad
Felix  | he  | painter    | Rosehill   | owl      | noodles
Clara  | she | gardener   | Oakham     | hen      | plum cake
Hugo   | he  | carpenter  | Stonebridge| goat     | dumplings
Nora   | she | pilot      | Windmoor   | donkey   | toast
Emil   | he  | cook       | Lakeside   | goose    | rice
Ida    | she | nurse      | Sandbay    | mouse    | porridge
Viktor | he  | miller     | Millbrook  | horse    | bread
Paula  | she | shepherd   | Greenfield | sheep    | cheese
Bruno  | he  | postman    | Highgate   | duck     | waffles
Greta  | she | singer     | Rosehill   | robin    | apple pie
Anton  | he  | smith      | Oakham     | crow     | sausages
Selma  | she | tailor     | Stonebridge| squirrel | pudding
Kasper | he  | sailor     | Windmoor   | seal     | chowder
Amelia | she | librarian  | Lakeside   | hedgehog | jam
Theo   | he  | baker      | Sandbay    | frog     | pizza
Olga   | she | fisher     | Millbrook  | bat      | omelette
Simon  | he  | teacher    | Greenfield | bee      | honey cake
Edith  | she | farmer     | Highgate   | cow      | mushrooms
Walter | he  | doctor     | Rosehill   | snail    | beans
Flora  | she | painter    | Oakham     | fox      | ice cream
Arthur | he  | gardener   | Stonebridge| beaver   | corn
Hilda  | she | carpenter  | Windmoor   | wolf     | gingerbread
Martin | he  | pilot      | Lakeside   | lion     | chips
Vera   | she | cook       | Sandbay    | butterfly| curry
Robert | he  | nurse      | Millbrook  | ant      | muffins
""")


@dataclass(frozen=True)
class Town:
    """A place where people live."""

    name: str
    lies: str
    known_for: str


TOWNS = (
    Town("Lakeside", "by a lake", "its swans"),
    Town("Sandbay", "by the sea", "its lighthouse"),
    Town("Millbrook", "on a river", "its water mill"),
    Town("Greenfield", "among meadows", "its summer fair"),
    Town("Highgate", "on a mountain", "its old gate"),
    Town("Rosehill", "on a hill", "its rose gardens"),
    Town("Oakham", "in a forest", "its great oak"),
    Town("Stonebridge", "in a valley", "its stone bridge"),
    Town("Windmoor", "on a moor", "its windmills"),
)

# Names that belong to no one in the world: for stories, sums and guests in a chat.
GIRLS = (
    "Anna", "Bella", "Cora", "Daisy", "Ella", "Fiona", "Gina", "Helen", "Iris", "Julia",
    "Kate", "Lucy", "Mary", "Nina", "Polly", "Rosa", "Sally", "Tina", "Wendy", "Zoe",
)  # fmt: skip
BOYS = (
    "Adam", "Ben", "Carl", "David", "Eric", "Frank", "George", "Harry", "Ivan", "Jack",
    "Kevin", "Leo", "Max", "Noah", "Otto", "Peter", "Sam", "Tom", "Will", "Zack",
)  # fmt: skip
UNKNOWN_NAMES = ("Barnaby", "Dorothea", "Leopold", "Philippa", "Quentin", "Rowena", "Sigmund", "Ursula")
UNKNOWN_ANIMALS = ("unicorn", "dragon", "griffin", "mermaid", "yeti", "phoenix", "troll", "giant")

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
SEASONS = ("spring", "summer", "autumn", "winter")
SEASON_OF_MONTH = {
    month: SEASONS[(number - 2) % 12 // 3] for number, month in enumerate(MONTHS)
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Small things that are carried about in stories and counted in sums: one, many.
ITEMS = (
    ("ball", "balls"), ("book", "books"), ("key", "keys"), ("cup", "cups"), ("coin", "coins"),
    ("spoon", "spoons"), ("shell", "shells"), ("bell", "bells"), ("kite", "kites"),
    ("candle", "candles"), ("ring", "rings"), ("button", "buttons"), ("marble", "marbles"),
    ("apple", "apples"), ("ribbon", "ribbons"), ("stone", "stones"), ("feather", "feathers"),
    ("letter", "letters"), ("pencil", "pencils"), ("lamp", "lamps"),
)  # fmt: skip
SPOTS = (
    "the kitchen", "the garden", "the attic", "the barn", "the cellar", "the hall", "the library",
    "the workshop", "the bathroom", "the yard", "the school", "the park", "the tent", "the shed",
)  # fmt: skip
HOLDERS = (
    "the box", "the basket", "the drawer", "the bag", "the cupboard", "the bucket", "the jar",
    "the chest", "the pot", "the sack",
)  # fmt: skip
FEELINGS = ("happy", "tired", "proud", "sad", "angry", "hungry", "curious", "calm")
WEATHERS = ("sunny", "rainy", "windy", "snowy", "foggy", "cloudy")


def a(noun: str) -> str:
    """A noun with its article: a cat, an owl; one that has an article keeps it."""
    if noun.startswith(("a ", "an ", "the ")):
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def words_to_spell() -> tuple[str, ...]:
    """Single words of the world, lower case, in a fixed order."""
    words = {animal.name for animal in ANIMALS} | {animal.food for animal in ANIMALS}
    words |= {thing.name for thing in THINGS} | {one for one, _ in ITEMS} | set(COLOURS)
    words |= {person.job for person in PEOPLE} | {person.dish for person in PEOPLE}
    words |= {name.lower() for name in (*DAYS, *MONTHS)} | set(SEASONS) | set(WEATHERS)
    return tuple(sorted(word for word in words if " " not in word))
