"""A company as one seed makes it: its people, its rooms, and all that is said in them, the same for every server."""
import dataclasses
import itertools
import random

from company_words import DAYS, FIRST, LANGUAGES, LAST, NOUNS, SENTENCES, SHORT, STREETS, SUBJECTS, TOWNS

ARTICLES = {"der": ("der", "den", "dem"), "die": ("die", "die", "der"), "das": ("das", "das", "dem")}
# Of a hundred messages so many are...
THREADED, REPLIES, EDITS, BRIEF = 12, 6, 4, 15
DEPARTMENTS = 10


@dataclasses.dataclass
class Message:
    """`to`: the message of the same room, by number, that this one relates to, in the way that `how` says."""

    sender: int
    body: str
    how: str = ""
    to: int = 0


@dataclasses.dataclass
class Room:
    name: str
    topic: str
    alias: str
    public: bool
    members: list
    messages: list = dataclasses.field(default_factory=list)


class Company:
    """Person 0 is the head, who is in every room. `people` are display names; `rooms` have the most talkative first;
    `numbers` holds, for numbers that are said exactly once and not in what is edited, the room and the message."""

    def __init__(self, seed, people, rooms, messages):
        self.random = random.Random(seed)
        self.unique = itertools.count(100_000)
        self.numbers = {}
        self.people = [self._person() for _ in range(people)]
        weights = [1 / (rank + 1) for rank in range(rooms)]
        self.rooms = [self._room(index, people, weights) for index in range(rooms)]
        changed = set()
        for index, weight in enumerate(weights):
            self._talk(index, max(1, round(messages * weight / sum(weights))), changed)
        self.numbers = {number: place for number, place in self.numbers.items() if place not in changed}

    def _person(self):
        language = self.random.choice(LANGUAGES)
        return f"{self._pick(FIRST[language])} {self._pick(LAST[language])}"

    def _pick(self, words):
        return self.random.choice(words.split())

    def _room(self, index, people, weights):
        language = LANGUAGES[index % 3]
        subject = self.random.choice(SUBJECTS[language])
        # Half of the people are where everybody is, few in a small room.
        size = max(3, int(people / 2 * weights[index] / weights[0]))
        members = sorted(self.random.sample(range(1, people), min(size, people - 1)))
        topic = f"{subject}: {self._sentence(language)}"
        return Room(f"{subject} {index}", topic, f"room-{index}", index % 2 == 0, [0, *members])

    def _talk(self, index, count, changed):
        """Fills the room with `count` messages; notes in `changed` which are edits or edited."""
        room, language = self.rooms[index], LANGUAGES[index % 3]
        threads = []
        for number in range(count):
            sender = self.random.choice(room.members)
            spoken = language if self.random.random() < 0.85 else self.random.choice(LANGUAGES)
            message = Message(sender, self._body(spoken, (index, number)))
            kind = self.random.randrange(100)
            if not number or kind >= THREADED + REPLIES + EDITS:
                pass
            elif kind < THREADED:
                # Most go on in a thread that is there.
                if not threads or self.random.random() < 0.15:
                    threads.append(self._earlier(room, number))
                message.how, message.to = "thread", self.random.choice(threads[-5:])
            else:
                message.how, message.to = "reply", self._earlier(room, number)
                original = room.messages[message.to]
                if kind >= THREADED + REPLIES and not original.how:
                    message.how, message.sender = "edit", original.sender
                    changed |= {(index, number), (index, message.to)}
            room.messages.append(message)

    def _earlier(self, room, number):
        """One of the last twenty messages that relates to nothing itself."""
        plain = [at for at in range(max(0, number - 20), number) if not room.messages[at].how]
        return self.random.choice(plain) if plain else 0

    def _body(self, language, place):
        if self.random.randrange(100) < BRIEF:
            return self._fill(self.random.choice(SHORT[language]), language, place)
        sentences = self.random.choices((1, 2, 3, 4), (50, 30, 15, 5))[0]
        return ". ".join(self._sentence(language, place) for _ in range(sentences))

    def _sentence(self, language, place=None):
        return self._fill(self.random.choice(SENTENCES[language]), language, place)

    def _fill(self, sentence, language, place):
        r = self.random
        values = {
            "first": self._pick(FIRST[language]),
            "full": f"{self._pick(FIRST[language])} {self._pick(LAST[language])}",
            "day": r.choice(DAYS[language]),
            "room": f"{r.choice(SUBJECTS[language])} {r.randrange(1, 60)}",
            "town": self._pick(TOWNS[language]),
            "street": self._pick(STREETS[language]).replace("-", " "),
            "time": f"{r.randrange(7, 19)}:{r.randrange(0, 60, 5):02}",
            "amount": f"{r.randrange(10, 90_000)},{r.randrange(100):02}",
            "amount2": f"{r.randrange(10, 90_000)},{r.randrange(100):02}",
            "small": str(r.randrange(2, 400)),
            "file": f"{self._pick('scan plan export IMG Angebot')}_{r.randrange(10_000)}.{self._pick('pdf xlsx docx jpg')}",
            "mail": f"{self._pick(LAST['en']).lower()}.{r.randrange(100)}@example.com",
            "ip": f"10.{r.randrange(256)}.{r.randrange(256)}.{r.randrange(1, 255)}",
        }
        if "{number}" in sentence:
            values["number"] = str(next(self.unique))
            if place:
                self.numbers[values["number"]] = place
        for letter in "nm":
            words, _ = r.choice(NOUNS[language])
            if language == "de":
                articles, words = ARTICLES[words[0]], words[1:]
                values |= dict(zip("aAD" if letter == "n" else "bBE", articles))
            if language == "en":
                values["v"] = words[2]
            values |= {f"{letter}{case}": word for case, word in enumerate(words)}
        return sentence.format_map(values)

    def departments(self):
        """Answers the rooms of each department, which are the company's space."""
        return [range(start, len(self.rooms), DEPARTMENTS) for start in range(DEPARTMENTS)]


def terms(company, count, seed):
    """Answers `count` search terms as (kind, term), as many of each kind: a "word" as it stands in messages, a "form" of
    one that stands in none, a "name", "two" words, a "number" that is said once."""
    chance = random.Random(seed)
    numbers = sorted(company.numbers)

    def term(kind):
        language = chance.choice(LANGUAGES)
        words, other = chance.choice([noun for noun in NOUNS[language] if noun[1]])
        word = chance.choice(words[1:] if language == "de" else words)
        if kind == "name":
            return f"{chance.choice(FIRST[language].split())} {chance.choice(LAST[language].split())}"
        two = f"{word} {chance.choice(TOWNS[language].split())}"
        return {"word": word, "form": other, "two": two, "number": chance.choice(numbers)}[kind]

    kinds = ("word", "form", "name", "two", "number")
    return [(kind, term(kind)) for kind, _ in zip(itertools.cycle(kinds), range(count))]
