"""Why we lose where we do: a word of the case's group/name, and the reason. What is not here is not yet explained."""

REASONS = {}


def reason(title):
    return next((why for word, why in REASONS.items() if word in title), "not yet explained")
