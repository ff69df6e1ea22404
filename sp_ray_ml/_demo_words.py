"""Words that the demo's shows and publishers are named with."""

from __future__ import annotations

__all__ = ["ADJECTIVES", "FIRST_NAMES", "LAST_NAMES", "NOUNS", "PUBLISHERS", "TEMPLATES", "TOPICS"]

NOUNS: dict[str, tuple[str, ...]] = {
    "business": ("Boardroom", "Market", "Ledger", "Founder", "Startup", "Deal", "Bottom Line", "Brand", "Warehouse", "Counter"),
    "comedy": ("Punchline", "Couch", "Green Room", "Open Mic", "Prank", "Roast", "Sketch", "Wig", "Banana", "Elevator"),
    "crime": ("Alibi", "Cold Case", "Witness", "Verdict", "Heist", "Suspect", "Motel", "Detective", "Getaway", "Fingerprint"),
    "education": ("Classroom", "Blackboard", "Lesson", "Library", "Notebook", "Question", "Tutor", "Seminar", "Recess", "Dictionary"),
    "fiction": ("Castle", "Stranger", "Labyrinth", "Lighthouse", "Manuscript", "Mirror", "Clockmaker", "Storm", "Island", "Masquerade"),
    "film": ("Director", "Matinee", "Screenplay", "Close-Up", "Premiere", "Stunt", "Reel", "Cameo", "Projector", "Sequel"),
    "food": ("Kitchen", "Table", "Recipe", "Bakery", "Spice Rack", "Orchard", "Market Stall", "Supper", "Butcher", "Teapot"),
    "health": ("Body", "Breath", "Heartbeat", "Checkup", "Sleep", "Clinic", "Pulse", "Remedy", "Night Nurse", "Spine"),
    "history": ("Empire", "Archive", "Throne", "Ruin", "Treaty", "Expedition", "Fortress", "Dynasty", "Scroll", "Revolution"),
    "music": ("Record", "Encore", "Bassline", "Rehearsal", "Vinyl", "Chorus", "Backstage", "Melody", "Drummer", "Mixtape"),
    "nature": ("Sea", "Forest", "Glacier", "Meadow", "Wolf", "Reef", "Canyon", "Songbird", "River", "Volcano"),
    "politics": ("Ballot", "Senate", "Campaign", "Debate", "Scandal", "Lobby", "Capital", "Veto", "Border", "Coalition"),
    "science": ("Atom", "Laboratory", "Telescope", "Experiment", "Galaxy", "Equation", "Microscope", "Particle", "Theory", "Comet"),
    "sports": ("Sideline", "Overtime", "Locker Room", "Penalty", "Marathon", "Underdog", "Stadium", "Corner Kick", "Rally", "Finish Line"),
    "technology": ("Algorithm", "Machine", "Network", "Robot", "Server Room", "Keyboard", "Inventor", "Signal", "Circuit", "Garage"),
    "travel": ("Suitcase", "Night Train", "Passport", "Harbour", "Map", "Detour", "Hostel", "Horizon", "Ferry", "Caravan"),
}  # fmt: skip
"""Per topic, what a show about it may have in its title."""

TOPICS = tuple(NOUNS)

ADJECTIVES = (
    "Quiet", "Deep", "Hidden", "Last", "Golden", "Restless", "Curious", "Forgotten", "Crooked", "Midnight", "Honest",
    "Electric", "Wandering", "Secret", "Broken", "Infinite", "Gentle", "Impossible", "Little", "Great", "Silent",
    "Stubborn", "Lucky", "Northern", "Unlikely", "Perfect", "Strange", "Burning", "Paper", "Velvet", "Open", "Second",
    "Distant", "Borrowed", "Fearless", "Accidental", "Invisible", "Modern", "Ordinary", "Hungry",
)  # fmt: skip

TEMPLATES = (
    "The {adjective} {noun}",
    "Tales of the {adjective} {noun}",
    "Inside the {adjective} {noun}",
    "Notes from the {adjective} {noun}",
    "The {noun} Hour",
    "Beyond the {noun}",
    "The {noun} and the {other}",
    "Waiting for the {adjective} {noun}",
    "{adjective} {noun} Radio",
    "One More {noun}",
)

FIRST_NAMES = (
    "Ada", "Bruno", "Clara", "Dario", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kemi", "Luca", "Maya", "Nils",
    "Olga", "Pablo", "Quinn", "Rosa", "Samir", "Tessa", "Uma", "Victor", "Wanda", "Yusuf", "Zoe",
)  # fmt: skip

LAST_NAMES = (
    "Almeida", "Berger", "Castillo", "Dubois", "Eriksen", "Fischer", "Garcia", "Haddad", "Ivanova", "Jensen", "Kowalski",
    "Lindqvist", "Moreau", "Novak", "Okafor", "Pereira", "Quist", "Rossi", "Silva", "Tanaka", "Urban", "Vargas", "Weber",
    "Young", "Zhang",
)  # fmt: skip

PUBLISHERS = (
    ("Northlight", "Harbour", "Paper Crane", "Redbrick", "Blue Door", "Longwave", "Halcyon", "Juniper", "Magpie",
     "Meridian", "Copperfield", "Fifth Floor", "Saltwater", "Lantern", "Wildcard", "Evergreen"),
    ("Audio", "Studios", "Media", "Sound", "Radio", "Collective", "Productions", "House", "Stories", "Network", "FM",
     "Voices"),
)  # fmt: skip
"""First and second words of their names."""
