"""Writes tool_requests.jsonl: requests to 42 kits of tools, made from the tables below.

No text is taken from anywhere.

    python examples/agentic/make_tool_requests.py

A row offers the tools of one kit and asks for one call, several at once, a call whose result is then told, a second
call after that, for something that no tool does, or for what the tools of another kit do. Twelve kits are written one by
one, thirty are five families of six things each: a family's kits have like tools with other names. The column `kit`
keeps a kit on one side of the split; the slice `tools` tells the two sorts apart.
The same command writes the same bytes again.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SEED = 20
OUTPUT = Path(__file__).parent / "tool_requests.jsonl"
STRING, INTEGER, NUMBER, BOOLEAN = "string", "integer", "number", "boolean"
CITIES = ("Lisbon", "Oslo", "Krakow", "Porto", "Ghent", "Turin", "Cork", "Bergen", "Graz", "Tartu")
NAMES = ("Ada", "Ben", "Chiara", "Dov", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jan")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

# kit -> tools: (name, description, {argument: (type or list of allowed values, pool)}, optional arguments, request,
#                what comes back, what is said then). Braces name arguments; {r} is the value that comes back.
Tool = tuple[str, str, dict[str, tuple[Any, tuple[Any, ...]]], str, tuple[Any, ...], str]
KITS: dict[str, tuple[Tool, ...]] = {
    "weather": (
        ("forecast", "Weather of a day.", {"city": (STRING, CITIES), "day": (list(DAYS), DAYS)},
         "What will the weather be in {city} on {day}?", ("rain", "sunny", "snow", "windy"), "{city} on {day}: {r}."),
        ("sunrise", "Time of sunrise.", {"city": (STRING, CITIES)},
         "When does the sun rise in {city}?", ("05:52", "06:31", "07:10"), "The sun rises in {city} at {r}."),
    ),
    "clock": (
        ("set_alarm", "Ring at a time.", {"hour": (INTEGER, tuple(range(5, 23))), "minute": (INTEGER, (0, 10, 15, 30, 45))},
         "Set an alarm for {hour}:{minute:02}.", ("ok",), "Your alarm is set for {hour}:{minute:02}."),
        ("start_timer", "Count down.", {"minutes": (INTEGER, (3, 5, 8, 12, 20, 25, 40, 90))},
         "Start a timer of {minutes} minutes.", ("ok",), "The timer runs for {minutes} minutes."),
    ),
    "kitchen": (
        ("find_recipe", "Look for a recipe.", {"dish": (STRING, ("lentil soup", "apple cake", "risotto", "ramen", "pesto"))},
         "Find me a recipe for {dish}.", (14, 23, 31), "I found {r} recipes for {dish}."),
        ("preheat_oven", "Heat the oven.", {"celsius": (INTEGER, (160, 180, 190, 200, 220))},
         "Preheat the oven to {celsius} degrees.", ("ok",), "The oven heats to {celsius} degrees."),
        ("add_to_list", "Put something on the shopping list.",
         {"item": (STRING, ("flour", "basil", "eggs", "rice", "butter")), "amount": (INTEGER, (1, 2, 3, 4, 6, 12))},
         "Put {amount} {item} on the shopping list.", ("ok",), "{item} is on the list."),
    ),
    "lights": (
        ("switch_light", "Turn a light on or off.",
         {"room": (STRING, ("kitchen", "hall", "attic", "garage", "study")), "state": (["on", "off"], ("on", "off"))},
         "Turn the light in the {room} {state}.", ("ok",), "The light in the {room} is {state}."),
        ("set_heating", "Set a room's temperature.",
         {"room": (STRING, ("kitchen", "hall", "attic", "garage", "study")), "celsius": (NUMBER, (17, 18.5, 19, 20.5, 22))},
         "Heat the {room} to {celsius} degrees.", ("ok",), "The {room} will have {celsius} degrees."),
    ),
    "music": (
        ("play", "Play a kind of music.", {"genre": (STRING, ("jazz", "fado", "techno", "folk", "opera"))},
         "Play some {genre}.", ("ok",), "Here is some {genre}."),
        ("set_volume", "Loudness from 0 to 100.", {"percent": (INTEGER, (10, 25, 40, 55, 70, 85))},
         "Set the volume to {percent} percent.", ("ok",), "The volume is {percent} percent."),
    ),
    "trains": (
        ("next_train", "Next departure.", {"start": (STRING, CITIES), "end": (STRING, CITIES[::-1])},
         "When does the next train from {start} to {end} leave?", ("09:14", "12:40", "17:05"),
         "The next train from {start} to {end} leaves at {r}."),
        ("reserve_seat", "Reserve seats on a train.",
         {"train": (STRING, ("IC 204", "RE 17", "EC 61", "TGV 8")), "seats": (INTEGER, (1, 2, 3, 4, 5))},
         "Reserve {seats} seats on {train}.", ("ok",), "{seats} seats on {train} are yours."),
    ),
    "calendar": (
        ("add_event", "Write an appointment down.",
         {"title": (STRING, ("dentist", "choir", "chess club", "staff meeting", "yoga")), "day": (list(DAYS), DAYS)},
         "Put {title} into my calendar for {day}.", ("ok",), "{title} stands in your calendar on {day}."),
        ("count_events", "How many appointments a day has.", {"day": (list(DAYS), DAYS)},
         "How many appointments do I have on {day}?", (0, 2, 3, 5), "You have {r} appointments on {day}."),
    ),
    "post": (
        ("track_parcel", "Where a parcel is.", {"number": (STRING, ("PX41", "QL77", "RM08", "ZZ30", "TB92"))},
         "Where is parcel {number}?", ("in the depot", "on its way", "delivered"), "Parcel {number} is {r}."),
        ("postage", "Price of a letter.", {"grams": (INTEGER, (20, 50, 100, 250, 500)), "country": (STRING, ("Spain", "Japan", "Chile"))},
         "What does a letter of {grams} grams to {country} cost?", (1.1, 1.8, 2.75), "It costs {r} euros."),
    ),
    "library": (
        ("search_books", "Books on a subject.", {"subject": (STRING, ("bees", "tides", "glaciers", "bridges", "knots"))},
         "Which books do you have on {subject}?", (4, 9, 17), "We have {r} books on {subject}."),
        ("renew_loan", "Keep a book longer.", {"card": (INTEGER, (1204, 3391, 7750, 9018)), "weeks": (INTEGER, (1, 2, 3, 4))},
         "Renew the loan on card {card} for {weeks} weeks.", ("ok",), "The loan runs {weeks} weeks longer."),
    ),
    "garden": (
        ("water_bed", "Water a bed.", {"bed": (STRING, ("roses", "beans", "herbs", "berries")), "litres": (NUMBER, (2.5, 4, 7.5, 10, 12))},
         "Give the {bed} {litres} litres of water.", ("ok",), "The {bed} get {litres} litres."),
        ("soil_moisture", "Measure the soil.", {"bed": (STRING, ("roses", "beans", "herbs", "berries"))},
         "How moist is the soil of the {bed}?", (12, 28, 44), "The soil of the {bed} has {r} percent moisture."),
    ),
    "messages": (
        ("send_message", "Write to somebody.",
         {"to": (STRING, NAMES), "text": (STRING, ("I am late", "call me", "dinner is ready", "happy birthday"))},
         "Tell {to}: {text}.", ("ok",), "{to} has your message."),
        ("unread", "Number of unread messages.", {"sender": (STRING, NAMES)},
         "How many unread messages from {sender} are there?", (0, 1, 3, 7), "There are {r} unread messages from {sender}."),
    ),
    "numbers": (
        ("convert_length", "Metres into another unit.",
         {"metres": (NUMBER, (3, 12.5, 40, 100, 250)), "unit": (["feet", "yards", "miles"], ("feet", "yards", "miles"))},
         "Convert {metres} metres into {unit}.", (9.84, 13.7, 41.0), "That is {r} {unit}."),
        ("roll_dice", "Throw dice.", {"dice": (INTEGER, (1, 2, 3, 5)), "sides": (INTEGER, (4, 6, 8, 20))},
         "Roll {dice} dice with {sides} sides.", (5, 9, 13), "You rolled {r}."),
    ),
}  # fmt: skip
# things -> the tools of each, {thing} in their names and texts
FAMILIES: tuple[tuple[tuple[str, ...], tuple[Tool, ...]], ...] = (
    (("sheep", "goats", "hens", "ducks", "ponies", "alpacas"), (
        ("count_{thing}", "Number of {thing} in a barn.", {"barn": (INTEGER, tuple(range(1, 9)))},
         "How many {thing} are in barn {barn}?", (4, 11, 26), "There are {r} {thing} in barn {barn}."),
        ("feed_{thing}", "Give the {thing} food.", {"kilos": (NUMBER, (2, 3.5, 5, 7.5, 12)), "day": (list(DAYS), DAYS)},
         "Feed the {thing} {kilos} kilos on {day}.", ("ok",), "The {thing} get {kilos} kilos on {day}."),
    )),
    (("pump", "kiln", "loom", "mixer", "dryer", "fan"), (
        ("start_{thing}", "Run the {thing} for a while.", {"minutes": (INTEGER, (5, 10, 15, 20, 35, 60))},
         "Start the {thing} for {minutes} minutes.", ("ok",), "The {thing} runs for {minutes} minutes."),
        ("{thing}_power", "Set how hard the {thing} works.", {"percent": (INTEGER, (20, 35, 50, 65, 80, 95))},
         "Set the {thing} to {percent} percent.", ("ok",), "The {thing} is at {percent} percent."),
    )),
    (("museum", "pool", "theatre", "zoo", "cinema", "castle"), (
        ("{thing}_hours", "When the {thing} is open.", {"day": (list(DAYS), DAYS)},
         "When is the {thing} open on {day}?", ("9 to 17", "10 to 18", "12 to 22"), "On {day} the {thing} is open from {r}."),
        ("book_{thing}", "Tickets for the {thing}.", {"name": (STRING, NAMES), "people": (INTEGER, (1, 2, 3, 4, 6, 9))},
         "Book the {thing} for {people} people in the name of {name}.", ("ok",), "The {thing} expects {name}, {people} people."),
    )),
    (("bricks", "nails", "tiles", "lamps", "chairs", "ropes"), (
        ("order_{thing}", "Have {thing} delivered.", {"amount": (INTEGER, (10, 25, 40, 100, 250)), "city": (STRING, CITIES)},
         "Order {amount} {thing} to {city}.", ("ok",), "{amount} {thing} go to {city}."),
        ("price_of_{thing}", "What {thing} cost.", {"amount": (INTEGER, (10, 25, 40, 100, 250))},
         "What do {amount} {thing} cost?", (18.5, 44, 120), "{amount} {thing} cost {r} euros."),
    )),
    (("invoice", "contract", "letter", "permit", "diploma", "report"), (
        ("find_{thing}", "Look for a {thing}.", {"year": (INTEGER, tuple(range(2009, 2025))), "owner": (STRING, NAMES)},
         "Find the {thing} of {owner} from {year}.", ("shelf 3", "box 12", "drawer 5"), "The {thing} is in {r}."),
        ("send_{thing}", "Send a {thing} to somebody.", {"to": (STRING, NAMES), "urgent": (BOOLEAN, (True, False))},
         "Send the {thing} to {to}, urgent: {urgent}.", ("ok",), "{to} gets the {thing}."),
    )),
)  # fmt: skip
# ruff: noqa: E501
CAPITALS = {"Iceland": "Reykjavik", "Chile": "Santiago", "Kenya": "Nairobi", "Nepal": "Kathmandu", "Peru": "Lima",
            "Ghana": "Accra", "Cuba": "Havana", "Latvia": "Riga", "Oman": "Muscat", "Laos": "Vientiane"}  # fmt: skip
AUTHORS = {"Don Quixote": "Miguel de Cervantes", "Faust": "Johann Wolfgang von Goethe", "Emma": "Jane Austen",
           "Hamlet": "William Shakespeare", "The Trial": "Franz Kafka", "Ulysses": "James Joyce"}  # fmt: skip
LEGS = {"spider": "Eight", "bee": "Six", "crab": "Ten", "hen": "Two", "goat": "Four", "lobster": "Ten"}
FRENCH = {"good night": "bonne nuit", "thank you": "merci", "the sea": "la mer", "yesterday": "hier", "bread": "pain"}
ERRANDS = {"order a taxi to the airport": "order taxis", "paint the fence green": "paint", "feed the cat": "feed cats",
           "buy me a bicycle": "buy things", "write my tax return": "write tax returns", "book a flight to Quito": "book flights",
           "walk the dog": "walk dogs", "repair my watch": "repair watches", "iron my shirt": "iron",
           "wash the car": "wash cars", "mow the lawn": "mow", "cut my hair": "cut hair"}  # fmt: skip
SMALL_TALK = (
    ("Thank you, that was all.", "You are welcome."),
    ("Good morning!", "Good morning. What can I do for you?"),
    ("Are you still there?", "Yes, I am here."),
    ("You are quick today.", "Thank you."),
    ("See you tomorrow.", "See you tomorrow."),
    ("I am tired.", "Then rest a little."),
)
BESIDE = (
    *((f"What is the capital of {country}?", f"{city}.") for country, city in CAPITALS.items()),
    *((f"Who wrote {book}?", f"{name}.") for book, name in AUTHORS.items()),
    *((f"How many legs does a {animal} have?", f"{number}.") for animal, number in LEGS.items()),
    *((f"What is '{word}' in French?", f"{french.capitalize()}.") for word, french in FRENCH.items()),
    *((f"Please {errand}.", f"I cannot {what} with the tools that I have.") for errand, what in ERRANDS.items()),
    *SMALL_TALK,
    *((f"Transfer {amount} euros to {name}.", "I cannot transfer money with the tools that I have.")
      for amount, name in zip((20, 35, 50, 80, 120), NAMES, strict=False)),
)  # fmt: skip
"""What no tool does, each once."""
KINDS = {"one call": 3, "several calls": 1, "result": 1, "second call": 1, "no call": 1, "other tool": 1}
"""Rows of each kind in each kit."""
CANNOT = "None of my tools can do that."


def all_kits() -> dict[str, tuple[Tool, ...]]:
    of_families = {
        thing: tuple(
            (name.replace("{thing}", thing), about.replace("{thing}", thing), arguments,
             request.replace("{thing}", thing), results, said.replace("{thing}", thing))
            for name, about, arguments, request, results, said in tools
        )
        for things, tools in FAMILIES
        for thing in things
    }  # fmt: skip
    return {**KITS, **of_families}


def describe(tool: Tool) -> dict[str, Any]:
    name, description, arguments, *_ = tool
    properties = {
        key: {"type": STRING, "enum": kind} if isinstance(kind, list) else {"type": kind}
        for key, (kind, _) in arguments.items()
    }
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def draw(tool: Tool, rng: random.Random) -> tuple[dict[str, Any], str]:
    """(a call, the request for it)."""
    name, _, arguments, request, *_ = tool
    values = {key: rng.choice(pool) for key, (_, pool) in arguments.items()}
    while len(set(map(str, values.values()))) < len(values) and "start" in values:
        values = {key: rng.choice(pool) for key, (_, pool) in arguments.items()}
    return {"function": {"name": name, "arguments": values}}, request.format(**values)


def answered(tool: Tool, call: dict[str, Any], rng: random.Random) -> list[dict[str, Any]]:
    """The tool's result, and what is said then."""
    result = rng.choice(tool[4])
    said = tool[5].format(**call["function"]["arguments"], r=result)
    return [
        {"role": "tool", "name": tool[0], "content": json.dumps({"result": result})},
        {"role": "assistant", "content": said[0].upper() + said[1:]},
    ]


def conversation(
    kind: str, kit: tuple[Tool, ...], rng: random.Random, beside: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Messages of one row; a row that calls nothing takes its request from `beside`, or from another kit."""

    def ask(request: str) -> dict[str, Any]:
        return {"role": "user", "content": request}

    def call(*calls: dict[str, Any]) -> dict[str, Any]:
        return {"role": "assistant", "content": "", "tool_calls": list(calls)}

    if kind == "no call":
        request, said = beside.pop()
        return [ask(request), {"role": "assistant", "content": said}]
    if kind == "other tool":
        other = rng.choice([tools for tools in KITS.values() if tools is not kit])
        return [ask(draw(rng.choice(other), rng)[1]), {"role": "assistant", "content": CANNOT}]
    first, second = rng.choice(kit), rng.choice(kit)
    (call_1, request_1), (call_2, request_2) = draw(first, rng), draw(second, rng)
    if kind == "several calls":
        while call_1 == call_2:
            call_2, request_2 = draw(second, rng)
        return [ask(f"{request_1} {request_2}"), call(call_1, call_2)]
    turns = [ask(request_1), call(call_1)]
    if kind != "one call":
        turns += answered(first, call_1, rng)
    if kind == "second call":
        turns += [ask(request_2), call(call_2)]
    return turns


def main() -> None:
    rng = random.Random(SEED)
    rows: list[dict[str, Any]] = []
    beside = rng.sample(BESIDE, len(BESIDE))
    seen: set[str] = set()
    for name, kit in all_kits().items():
        sort = "alone" if name in KITS else "of a family"
        for kind, count in KINDS.items():
            for _ in range(count):
                for _ in range(50):
                    messages = conversation(kind, kit, rng, beside)
                    key = json.dumps(messages)
                    if name + key not in seen:
                        break
                seen.add(name + key)
                tools = [describe(tool) for tool in kit]
                rows.append(
                    {"messages": messages, "tools": tools, "kit": name, "slices": {"kind": kind, "tools": sort}}
                )
    rng.shuffle(rows)
    OUTPUT.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows: {OUTPUT}")


if __name__ == "__main__":
    main()
