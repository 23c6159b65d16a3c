"""Names and words outside the world's tables: what is copied or spelled is learned from letters.

Users bring names of their own. One in ten names and words is held out by its hash, so that copying
and spelling are tested on what training never contains.
"""

from collections.abc import Sequence
from random import Random

from nanochat.primer.question import Split, split_of
from nanochat.primer.world import BOYS, GIRLS, PEOPLE, TOWNS, WORDS, words

_SHE = words("""
    Aisha Alice Amara Amy Ana Angela Anya Aria Ava Beth Camila Chloe Dana Diana Elena Elif Elsa
    Emily Emma Erin Eva Fatima Freya Gabriela Grace Hannah Heidi Ines Ingrid Isabel Ivy Jada Jane
    Jasmine Jenny Joan Jodie Karen Katya Keiko Kira Layla Leila Lena Leonie Lily Linda Lisa Lola
    Luisa Luna Magda Maria Marie Maya Megan Mei Mila Molly Naomi Nadia Natalie Noor Olivia Paloma
    Penny Priya Rachel Rania Rebecca Rosie Ruby Sakura Sara Sarah Sasha Sofia Sonia Stella Susan
    Tara Tanya Tilda Uma Valerie Victoria Violet Wanda Xenia Yara Yasmin Yuki Zara
""")  # fmt: skip
_HE = words("""
    Aaron Ahmed Akira Alan Alex Ali Amir Andre Andrew Arjun Axel Bill Bob Brian Carlos Charlie Chen
    Chris Cyrus Dan Daniel Darius Diego Dmitri Elias Elliot Ethan Farid Finn Gabriel Gary Hans
    Haruto Hassan Hector Ian Ibrahim Igor Jacob James Jamal Jason Joe John Jorge Jose Josh Juan Kai
    Karim Ken Kofi Kumar Lars Leon Liam Logan Louis Lucas Luis Luke Marco Marcus Mark Mateo Matt
    Michael Miguel Mike Milo Mohamed Nick Nils Oliver Omar Oscar Pablo Patrick Paul Pedro Quentin
    Rafael Ravi Rex Ricardo Rohan Ryan Samir Sean Sergei Steve Tariq Ted Theodor Thomas Tim Tony
    Umar Victor Vikram Wei William Xavier Yusuf Zed
""")  # fmt: skip
FIRST_NAMES = (*_SHE, *_HE)

# Ordinary words that are no values of the world: things in stories, words to spell, topics that it
# does not know.
THINGS_AROUND = words("""
    bag ball balloon banner bat beads bed belt bike blanket block boat boot bow bowl box bracelet
    bread brick bridge broom bucket bus cake camera cap car carpet chain chair chalk clock coat
    comic computer cookie cushion desk diary dish door drawing drum envelope fan fence folder fork
    frame game gift guitar hat helmet hook jacket jewel jigsaw jug kettle knife ladle laptop
    lemonade lock magnet mask medal mirror mitten mug net newspaper notebook oar paint pan paper
    parcel pen phone photo piano picture pin pipe pizza poster pot present purse puzzle radio raft
    rake robot rocket rope rug ruler sandal sandwich scarf scissors scooter shawl shirt shoe shovel
    skate skirt sled slipper soap sock sofa spade sponge stick stool string sword table tablet tape
    teapot telescope tie torch towel tower toy train tray tree trophy truck tube umbrella vase wagon
    wallet watch wheel whip window wrench
""")  # fmt: skip
_OTHER_WORDS = words("""
    about above actor adventure afternoon airport almost always amazing anchor ancient anger answer
    arrow artist autumnal baby back balance bamboo bank battle beach beautiful because before
    believe birthday bottom brain brave breakfast bright brother build butter button calm camping
    candy captain carbon castle ceiling century chapter cheap cherish chimney choose circle city
    clever climb cloud coast coffee comet common corner cotton country courage cousin cradle crystal
    dance danger daughter dawn decide deep desert dinner distance doctor dolphin double dream dust
    early earth east easy echo empty energy engine evening ever example family famous fast father
    feather field finger fire flame flower follow forest forever fortune freedom friend funny future
    galaxy garden gentle ghost glass glory gold grammar gravity ground guest hammer hand harbor
    heart heavy height help history holiday honest hope house hundred husband idea image island
    jelly join journey judge juice jump jungle justice kind kingdom kitchen knee knight knowledge
    ladder language large laugh leader learn leather legend length lesson library light listen
    little lonely love lucky lunch machine magic market marriage matter measure melody memory
    message metal middle million minute mirror money monster moon morning mother mountain movie
    music mystery narrow nature never night noise north number ocean office often orange orbit order
    outside oxygen palace paradise parent party patient peace people perfect person planet plastic
    player poem pocket poison police power pretty price prince problem promise proud question quick
    quiet rainbow reason record rhythm river road romance rough royal sailor salad sand school
    science season secret shadow sharp shine silence silver simple sister sleep slow small smile
    smooth snow soccer soft soldier song sorry south space special speed spirit sport spring square
    stairs station steam stone storm story strange street strong student sugar summer sun surface
    surprise sweet swim tall teacher team temple thank theater thing thousand thunder tiger tired
    today together tomorrow touch travel treasure trouble true uncle under university upstairs
    valley very village voice volcano wait war warm water wealth weather west whisper white wife
    wild winter wisdom wish woman wonder word work world write wrong yellow yesterday young zebra
    zero zone
""")  # fmt: skip
# Of these words, those that the texts of the world use anyway, so that they cannot be held out.
_IN_TEXTS = words("""
    answer baby birthday box doctor east hand kitchen learn mother mountain night often paper robot
    secret small square team thousand tomorrow tower
""")
# Things that are counted in word problems, beside those of the world.
COUNTED = words("""
    cookie pen toy sticker card egg banana orange book coin balloon flower pencil cake car block
    photo shell sweet ticket chair page muffin bead nut carrot
""")  # fmt: skip
COMMON_WORDS = tuple(dict.fromkeys((*THINGS_AROUND, *_OTHER_WORDS)))

_ONSETS = words(
    "b bl br c ch d dr f fl g gl gr h j k kl l m n p pl pr qu r s sh sk sl sp st t th tr v w y z"
)
_VOWELS = words("a e i o u a e i o u ai ee ie oo ou")
_CODAS = words("b ck d f g l ll m n nd ng nk nt p r rd rk rt s sh sk st t th x zz")
_NAME_ENDS = words("a a o i y e ah an ar as el en er eth ia ie il in is on or us")


def invented_word(rng: Random) -> str:
    """A word of one to three syllables that can be spoken, such as "grabonk"."""
    syllables = rng.choice((1, 2, 2, 3))
    start = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
    return start + rng.choice(_CODAS)


def _blend(rng: Random) -> str:
    """The start of one word and the end of another, such as "kitbow"."""
    first, second = rng.sample(_TO_BLEND, 2)
    start = first[: rng.randint(1, len(first) - 1)].lower()
    return start + second[rng.randint(1, len(second) - 1) :]


def invented_name(rng: Random) -> str:
    """A first name such as "Shoubela"."""
    start = "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS[:10]) for _ in range(rng.choice((1, 1, 2)))
    )
    return (start + rng.choice(_ONSETS) + rng.choice(_NAME_ENDS)).capitalize()


def is_in(split: Split, word: str) -> bool:
    """Whether a word may occur in a split: of those that no text uses, one in ten is held out."""
    return split == ("train" if word.lower() in _IN_TEXTS else split_of(f"word|{word}"))


def is_open_name(word: str) -> bool:
    """Whether a word looks like a name that is not one of the world's."""
    return word.isalpha() and word.istitle() and word not in _NAMES_OF_THE_WORLD


def open_name(rng: Random, split: Split) -> tuple[str, str]:
    """A first name, as people have, or an invented one, and its pronoun."""
    while True:
        kind, is_girl = rng.random(), rng.random() < 0.5
        if kind < 0.5:
            name = rng.choice(_SHE if is_girl else _HE)
        elif kind < 0.75 and split == "train":
            name = _blend(rng).capitalize()
        else:
            name = invented_name(rng)
        if is_in(split, name):
            return name, "she" if is_girl else "he"


def person_name(rng: Random, split: Split) -> tuple[str, str]:
    """The name of somebody in a story and its pronoun; half are of the world's children."""
    if rng.random() < 0.4:
        is_girl = rng.random() < 0.5
        return rng.choice(GIRLS if is_girl else BOYS), "she" if is_girl else "he"
    return open_name(rng, split)


def open_word(rng: Random, split: Split) -> str:
    """A common word, or one of no list."""
    return _open(rng, split, COMMON_WORDS, 0.4)


def open_thing(rng: Random, split: Split) -> str:
    """A thing of a story that is not one of the world's."""
    # With fewer that are in no list, the list is memorized: "robots" of a story become "robins".
    return _open(rng, split, THINGS_AROUND, 0.9 if split == "test" else 0.6)


def _open(rng: Random, split: Split, common: Sequence[str], share: float) -> str:
    """One of `common`, by its share, or else one of no list."""
    while True:
        if rng.random() < share:
            word = rng.choice(common)
        elif rng.random() < 0.35 and split == "train":
            word = _blend(rng)
        else:
            word = invented_word(rng)
        if is_in(split, word):
            return word


def two_people(rng: Random, split: Split) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    """Two people of a story, each as (name, he or she, his or her)."""
    first, second = person_name(rng, split), person_name(rng, split)
    while second[0] == first[0]:
        second = person_name(rng, split)
    (name, she), (friend, he) = first, second
    return (name, she, _POSSESSIVE[she]), (friend, he, _POSSESSIVE[he])


# Blends have parts of English words in new places, where they can only be copied: without them a
# held-out "Jason" becomes "J season", because no other word of training ends in "ason".
_TO_BLEND = tuple(word for word in (*FIRST_NAMES, *COMMON_WORDS) if is_in("train", word)) + WORDS
_NAMES_OF_THE_WORLD = {*BOYS, *GIRLS, *(p.name for p in PEOPLE), *(t.name for t in TOWNS)}
_POSSESSIVE = {"he": "his", "she": "her"}
