"""A shop's own data as it comes out of the shop: semicolons, `12,50 EUR`, lists as text, a guest account, duplicates.

Nothing of it is neat: a byte order mark, ids with leading zeros, German dates, HTML in titles, missing prices and
titles, items that nobody bought, decimal commas in ratings and weights, one user with a third of all events.
"""

import json
import random
from pathlib import Path

GUEST = "gast"
_THINGS = {
    "Stifte": ("Kugelschreiber", "Bleistift", "Füller", "Fineliner"),
    "Papier": ("Notizbuch", "Heft", "Block", "Umschlag"),
    "Ordnung": ("Ordner", "Ablage", "Register", "Locher"),
}
_BRANDS, _COLOURS = ("Nordlicht", "Müller & Söhne", "Papierus"), ("rot", "blau", "grün", "schwarz")

# What its owner has to say: the columns' names and three ways of writing.
SOURCE_ARGS = {
    "columns": {"user_id": "Kunde", "item_id": "Artikelnr", "timestamp": "Datum", "rating": "Bewertung"},
    "item_columns": {
        "item_id": "Artikelnr", "title": "Bezeichnung", "brand": "Marke", "categories": "Kategorien", "price": "Preis"
    },
    "timestamp_unit": "%d.%m.%Y %H:%M",
    "price_format": "{} EUR",
    "decimal": ",",
    "item_lists": {"categories": {"path": "json"}, "Farben": {"several": "|"}},
}  # fmt: skip


def _euros(price: float) -> str:
    return f"{price:,.2f}".replace(",", " ").replace(".", ",").replace(" ", ".") + " EUR"


def write_messy_shop(folder: Path, num_items: int = 120, num_users: int = 250, seed: int = 5) -> dict:
    """Writes `Bestellungen.csv` and `Artikel.csv`; returns what is true of them: events, duplicates, the guest's."""
    draw = random.Random(seed)
    items, rows = [], ["Artikelnr;Bezeichnung;Marke;Kategorien;Preis;Farben;Gewicht"]
    for number in range(num_items):
        kind = draw.choice(list(_THINGS))
        thing, brand = draw.choice(_THINGS[kind]), draw.choice(_BRANDS)
        items.append((f"{number:05}", kind))
        title = "" if number == 7 else f"{brand.replace('&', '&amp;')} <b>{thing}</b> Nr. {number}"
        categories = json.dumps(["Büro", kind, thing], ensure_ascii=False).replace('"', '""')
        price = "" if number % 40 == 3 else _euros(draw.choice((0.99, 4.5, 12.5, 39.0, 1299.0)))
        colours = "|".join(draw.sample(_COLOURS, draw.randint(1, 3)))
        weight = f"{draw.randint(1, 30)},{draw.randint(1, 9)}"
        rows.append(f'{items[-1][0]};"{title}";{brand};"{categories}";{price};{colours};{weight}')
    (folder / "Artikel.csv").write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")

    bought, events = items[:-5], []  # five that nobody bought
    for user in range(num_users):
        taste, day = draw.choice(list(_THINGS)), draw.randint(1, 300)
        for _ in range(draw.randint(5, 12)):
            item = draw.choice([item for item, kind in bought if kind == taste or draw.random() < 0.2])
            day += draw.randint(0, 4)
            events.append((f"K{user:04}", item, day))
    for _ in range(len(events) // 2):
        events.append((GUEST, draw.choice(bought)[0], draw.randint(1, 340)))
    again = draw.sample(events, len(events) // 20)
    lines = []
    for user, item, day in events:
        moment = f"{1 + day % 28:02}.{1 + day // 28 % 12:02}.2024 {day % 24:02}:{draw.randint(0, 59):02}"
        lines.append(f"{user};{item};{moment};{draw.choice(('4,5', '3,0', '5,0'))}")
        if (user, item, day) in again:
            lines.append(lines[-1])
    (folder / "Bestellungen.csv").write_text("Kunde;Artikelnr;Datum;Bewertung\n" + "\n".join(lines) + "\n", "utf-8")
    return {
        "events": len(lines),
        "duplicates": len(lines) - len({line.rsplit(";", 1)[0] for line in lines}),
        "of_guest": sum(line.startswith(f"{GUEST};") for line in lines),
        "items": num_items,
    }
