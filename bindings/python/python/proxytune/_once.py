"""What goes wrong at each step is said at the first."""

import warnings


class Once:
    """Says a thing once for each kind of it, of which numbers are no part."""

    def __init__(self, say=warnings.warn):
        self.say, self.told = say, set()

    def __call__(self, what, then):
        kind = "".join(c for c in what if not c.isdigit())
        if kind not in self.told:
            self.told.add(kind)
            self.say(f"proxytune: {what}; {then} (said once)")

    def unshifted(self, failures):
        """Rows of a batch that were left as they were, and why."""
        for why in failures.values():
            self(why, "texts go on unshifted where this happens")
