"""Word lists of the built-in tasks; an entry lists its forms: (singular, plural), or just one.

Words are common, so that most are single tokens in most models; others are skipped for that model.
"""

Word = tuple[str, ...]

PEOPLE: tuple[Word, ...] = (
    ("author", "authors"), ("doctor", "doctors"), ("teacher", "teachers"), ("student", "students"), ("farmer", "farmers"),
    ("worker", "workers"), ("writer", "writers"), ("artist", "artists"), ("singer", "singers"), ("actor", "actors"),
    ("driver", "drivers"), ("player", "players"), ("lawyer", "lawyers"), ("officer", "officers"), ("soldier", "soldiers"),
    ("manager", "managers"), ("leader", "leaders"), ("king", "kings"), ("queen", "queens"), ("child", "children"),
    ("boy", "boys"), ("girl", "girls"), ("man", "men"), ("woman", "women"), ("friend", "friends"),
    ("neighbor", "neighbors"), ("brother", "brothers"), ("sister", "sisters"), ("son", "sons"), ("daughter", "daughters"),
    ("father", "fathers"), ("mother", "mothers"), ("guard", "guards"), ("guest", "guests"), ("customer", "customers"),
    ("scientist", "scientists"), ("engineer", "engineers"), ("professor", "professors"), ("judge", "judges"),
    ("director", "directors"), ("candidate", "candidates"), ("expert", "experts"), ("visitor", "visitors"),
    ("coach", "coaches"), ("pilot", "pilots"), ("nurse", "nurses"), ("owner", "owners"), ("parent", "parents"),
    ("partner", "partners"), ("client", "clients"), ("patient", "patients"), ("citizen", "citizens"),
)
PLACES_AND_THINGS: tuple[Word, ...] = (
    ("house", "houses"), ("car", "cars"), ("tree", "trees"), ("table", "tables"), ("chair", "chairs"),
    ("window", "windows"), ("door", "doors"), ("garden", "gardens"), ("river", "rivers"), ("road", "roads"),
    ("bridge", "bridges"), ("building", "buildings"), ("school", "schools"), ("church", "churches"), ("shop", "shops"),
    ("box", "boxes"), ("lamp", "lamps"), ("boat", "boats"), ("ship", "ships"), ("train", "trains"), ("truck", "trucks"),
    ("horse", "horses"), ("dog", "dogs"), ("cat", "cats"), ("bird", "birds"), ("flower", "flowers"),
    ("mountain", "mountains"), ("lake", "lakes"), ("tower", "towers"), ("wall", "walls"), ("gate", "gates"),
    ("field", "fields"), ("machine", "machines"), ("computer", "computers"), ("camera", "cameras"), ("clock", "clocks"),
    ("bottle", "bottles"), ("bag", "bags"), ("stone", "stones"), ("hotel", "hotels"),
)
ADJECTIVES: tuple[Word, ...] = tuple((word,) for word in (
    "young", "old", "tall", "famous", "new", "happy", "quiet", "local", "good", "great", "poor", "rich", "brave", "kind",
    "clever", "proud", "strong", "busy", "lonely", "angry", "wise", "lucky", "hungry", "gentle", "honest", "tired",
))
PREPOSITIONS: tuple[Word, ...] = tuple((word,) for word in (
    "near", "behind", "beside", "by", "with", "at", "under", "from",
))
TRANSITIVE: tuple[Word, ...] = (  # what one person does to another: (with a singular subject, with a plural one)
    ("likes", "like"), ("knows", "know"), ("sees", "see"), ("wants", "want"), ("needs", "need"), ("loves", "love"),
    ("helps", "help"), ("meets", "meet"), ("follows", "follow"), ("calls", "call"), ("finds", "find"),
    ("remembers", "remember"), ("visits", "visit"), ("trusts", "trust"), ("supports", "support"), ("fears", "fear"),
)
NAMES: tuple[Word, ...] = tuple((word,) for word in (
    "Mary", "John", "Anna", "Peter", "Sarah", "David", "Laura", "Michael", "Emma", "Thomas", "Alice", "Robert", "Julia",
    "Daniel", "Helen", "Paul", "Karen", "Mark", "Susan", "James", "Linda", "George", "Lisa", "Steven", "Maria", "Kevin",
    "Emily", "Brian", "Rachel", "Simon", "Jane", "Martin", "Kate", "Henry", "Rose", "Adam", "Claire", "Jack", "Lucy",
    "Frank", "Ruth", "Oliver", "Diana", "Victor", "Martha", "Walter", "Sophie", "Arthur",
))
MEETING_PLACES: tuple[Word, ...] = tuple((word,) for word in (
    "store", "park", "school", "office", "station", "church", "hospital", "restaurant", "library", "market", "beach",
    "house", "hotel", "museum", "bank", "garden", "airport", "theater", "farm", "bar",
))
PRESENTS: tuple[Word, ...] = tuple((word,) for word in (
    "drink", "book", "ball", "letter", "ring", "key", "flower", "gift", "map", "bag", "ticket", "coin", "picture", "phone",
    "card", "bottle", "box", "camera", "hat", "glass",
))
LASTING: tuple[Word, ...] = tuple((word,) for word in (
    "war", "siege", "reign", "strike", "trial", "voyage", "project", "campaign", "conflict", "revolt", "debate", "drought",
    "famine", "expedition", "occupation", "alliance", "journey", "study", "construction", "career", "dispute", "rebellion",
    "plague", "mission", "partnership", "search", "treaty", "revolution", "crisis", "program",
))
