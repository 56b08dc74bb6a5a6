"""Numbers as a person reads them."""


def duration(seconds: float) -> str:
    """ "41 s", "3 min 20 s", "2 h 5 min"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"


def count(n: int, what: str) -> str:
    """1 document, 2,000 documents."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")
